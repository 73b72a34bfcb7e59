"""What tasks over a fixed list of labels share."""
