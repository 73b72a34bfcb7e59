"""Records to evidence: per-example scores, intervals, significance tests, and the CI baseline."""
