"""ViLT: one stream, text and image patches through the same blocks."""
