"""LLaVA: an image encoder, a projector, and a decoder whose layers are the blocks."""
