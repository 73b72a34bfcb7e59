"""Digests of weights and plain values, which identify the inputs of a result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, uint8


def digest_state(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over names, shapes, types and bytes of `state`, and over `config` as JSON."""
    hasher = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        hasher.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        hasher.update(tensor.reshape(-1).view(uint8).numpy().tobytes())
    return hasher.hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 (16 hex digits) of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
