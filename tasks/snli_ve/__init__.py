"""SNLI-VE: visual entailment."""
