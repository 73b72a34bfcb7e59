"""POPE: is an object in a photograph? Yes or no (Li et al., EMNLP 2023)."""
