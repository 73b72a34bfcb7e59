"""Backbones: the pretrained models that methods adapt."""
