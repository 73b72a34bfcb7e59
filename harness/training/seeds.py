"""One seed per cell, from which each use gets its own generator."""

from __future__ import annotations

import hashlib

import torch

MAX_SEED = 2**63 - 1


def derived_seed(seed: int, use: str) -> int:
    """The seed of one use (`initialisation`, `order`, `search`, …), independent of those of other uses."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{use}".encode()).digest()[:8]) & MAX_SEED


def generator(seed: int, use: str) -> torch.Generator:
    """The CPU generator of one use."""
    return torch.Generator().manual_seed(derived_seed(seed, use))
