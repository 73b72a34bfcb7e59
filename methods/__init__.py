"""Methods: ways of adapting a pretrained backbone to a task, one per file."""
