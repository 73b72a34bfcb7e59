"""One seed a cell, and from it a separate generator for each use."""

from __future__ import annotations

import hashlib

import torch

MAX_SEED = 2**63 - 1


def derived_seed(seed: int, use: str) -> int:
    """A seed for one use (`initialisation`, `order`, `search`, …), unrelated to the others'."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{use}".encode()).digest()[:8]) & MAX_SEED


def generator(seed: int, use: str) -> torch.Generator:
    """A CPU generator for one use."""
    return torch.Generator().manual_seed(derived_seed(seed, use))
