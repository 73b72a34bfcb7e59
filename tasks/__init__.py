"""Tasks that a backbone is adapted to, one per folder."""
