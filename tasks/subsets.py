"""Smaller parts of a split, chosen by hashes: the same whatever else is in the files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tasks.base import SplitName

Item = TypeVar("Item")


@dataclass(frozen=True)
class Limits:
    """Options to take a part of each split.

    limit_train, limit_val, limit_test: at most so many examples, chosen by a hash of their id.
    limit_seed: another seed is another choice.
    """

    limit_train: int | None = None
    limit_val: int | None = None
    limit_test: int | None = None
    limit_seed: int = 0

    def __post_init__(self) -> None:
        for split in ("train", "val", "test"):
            limit = getattr(self, f"limit_{split}")
            if limit is not None and limit < 1:
                raise ValueError(f"limit_{split} has to be at least 1, not {limit}")

    def limit_of(self, split: SplitName) -> int | None:
        """The limit of a split; None takes it whole."""
        limit: int | None = getattr(self, f"limit_{split}")
        return limit


def limited(items: Sequence[Item], limit: int | None, seed: int, key: Callable[[Item], str]) -> list[Item]:
    """At most `limit` items in their order, by a hash of their key; a smaller limit is a part of a larger one."""
    if limit is None or limit >= len(items):
        return list(items)
    salt = f"limit {seed}"
    keys = sorted((key(item) for item in items), key=lambda name: (uniform_hash(salt, name), name))
    chosen = set(keys[:limit])
    return [item for item in items if key(item) in chosen]


def cut_off(groups: Iterable[Item], fraction: float) -> frozenset[Item]:
    """Groups (images, sentences) whose hash falls below `fraction`: they become the validation split."""
    return frozenset(group for group in groups if uniform_hash("val", str(group)) < fraction)


def uniform_hash(salt: str, key: str) -> float:
    """Uniform in [0, 1), a function of its arguments alone."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{key}".encode()).digest()[:6]) / 2**48
