"""What a user may take away from a data set: examples, chosen by hashes, or one of its modalities.

The same hashes give the same examples whatever else is in the files. With the image or the text blanked a model
can only learn what the other gives away, which is how biased a data set is.
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
"""The modality that is blanked, in training and in testing."""


@dataclass(frozen=True)
class Limits:
    """Options to take a part of each split, or of each example.

    blank: "image" puts a mid-grey image in the place of every one, "text" an empty text.
    limit_train, limit_val, limit_test: at most so many examples, chosen by a hash of their id.
    limit_seed: another seed is another choice.
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


def blanked(examples: Sequence[Example], blank: Blank) -> list[Example]:
    """The examples without what their images, or their text, say."""
    if blank == "image":
        return [replace(example, images=(BLANK_IMAGE,) * len(example.images)) for example in examples]
    return [replace(example, text="") for example in examples] if blank == "text" else list(examples)


def cut_off(groups: Iterable[Item], fraction: float) -> frozenset[Item]:
    """Groups (images, sentences) whose hash falls below `fraction`: they become the validation split."""
    return frozenset(group for group in groups if uniform_hash("val", str(group)) < fraction)


def uniform_hash(salt: str, key: str) -> float:
    """Uniform in [0, 1), a function of its arguments alone."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{key}".encode()).digest()[:6]) / 2**48
