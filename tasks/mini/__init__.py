"""The embedded benchmark: drawn scenes, captions for pre-training, and tasks in the official formats."""
