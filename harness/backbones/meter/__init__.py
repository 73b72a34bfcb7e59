"""METER: two streams, joined by co-attention."""
