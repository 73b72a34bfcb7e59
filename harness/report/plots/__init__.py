"""Figures of a results folder; matplotlib is imported here and nowhere else."""
