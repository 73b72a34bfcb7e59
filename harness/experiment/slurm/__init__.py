"""Cells as jobs of a Slurm cluster: one job per cell, submitted as an array."""
