"""One seed per cell, from which each use gets its own generator."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

MAX_SEED = 2**63 - 1


def derived_seed(seed: int, use: str) -> int:
    """The seed of one use (`initialisation`, `order`, `search`, …), independent of those of other uses."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{use}".encode()).digest()[:8]) & MAX_SEED


def generator(seed: int, use: str) -> torch.Generator:
    """The CPU generator of one use."""
    return torch.Generator().manual_seed(derived_seed(seed, use))


def random_states(device: torch.device) -> dict[str, Tensor]:
    """States of torch's global generators: the CPU's and, on CUDA, the device's."""
    states = {"cpu": torch.random.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore what `random_states` returned; a state of a kind of device that is not in use is ignored."""
    torch.random.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
