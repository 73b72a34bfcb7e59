"""A results folder as one self-contained HTML page."""
