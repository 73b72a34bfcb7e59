"""One model, one training loop: optimiser, checkpoints, search, encoder cache."""
