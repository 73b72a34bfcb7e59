"""Statistics from records: per-example scores, intervals, significance tests, and the CI baseline."""
