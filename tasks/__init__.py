"""Tasks: what a backbone is adapted to, one a file."""
