"""Figures of a results folder. Only this package and what uses its figures import matplotlib."""
