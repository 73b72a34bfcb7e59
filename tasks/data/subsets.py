"""Reduce a data set to some of its examples, chosen by hashes, or to one of its modalities.

The hashes choose the same examples whatever else is in the files. With images or texts blanked, a model can learn
only what the other modality predicts; its score measures the bias of the data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from tasks.base import Example, SplitName
from tasks.data.images import BLANK_IMAGE

Item = TypeVar("Item")


Blank = Literal["none", "image", "text"]
"""The modality that is blanked, in training and in evaluation."""


@dataclass(frozen=True)
class Limits:
    """Options to use only a part of each split, or of each example.

    blank: "image" replaces every image by a mid-grey one, "text" every text by an empty one.
    limit_train, limit_val, limit_test: largest number of examples, chosen by a hash of their id.
    limit_seed: each seed makes a different choice.
    """

    limit_train: int | None = None
    limit_val: int | None = None
    limit_test: int | None = None
    limit_seed: int = 0
    blank: Blank = "none"

    def __post_init__(self) -> None:
        for split in ("train", "val", "test"):
            limit = getattr(self, f"limit_{split}")
            if limit is not None and limit < 1:
                raise ValueError(f"limit_{split} must be at least 1, not {limit}")

    def limit_of(self, split: SplitName) -> int | None:
        """The limit of a split; None: use all of it."""
        limit: int | None = getattr(self, f"limit_{split}")
        return limit


def limited(
    items: Sequence[Item], limit: int | None, seed: int, key: Callable[[Item], str]
) -> Sequence[Item]:
    """At most `limit` items in order, chosen by a hash of their key; a smaller limit gives a subset of a larger one."""
    if limit is None or limit >= len(items):
        return items
    salt = f"limit {seed}"
    keys = sorted((key(item) for item in items), key=lambda name: (uniform_hash(salt, name), name))
    chosen = set(keys[:limit])
    return [item for item in items if key(item) in chosen]


def blanked(examples: Sequence[Example], blank: Blank) -> Sequence[Example]:
    """The examples with their images, or their texts, blanked."""
    if blank == "image":
        return [replace(example, images=(BLANK_IMAGE,) * len(example.images)) for example in examples]
    return [replace(example, text="") for example in examples] if blank == "text" else examples


def cut_off(groups: Iterable[Item], fraction: float) -> frozenset[Item]:
    """Groups (images, sentences) whose hash is below `fraction`; they become the validation split."""
    return frozenset(group for group in groups if uniform_hash("val", str(group)) < fraction)


def uniform_hash(salt: str, key: str) -> float:
    """A number in [0, 1), uniform over keys and determined by the arguments alone."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{key}".encode()).digest()[:6]) / 2**48
