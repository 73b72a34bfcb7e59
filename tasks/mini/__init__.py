"""The embedded benchmark: drawn scenes, with captions to pre-train on and tasks in the official formats."""
