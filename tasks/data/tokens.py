"""Token ids of many texts in one array; large collections are tokenised once and kept in the cache folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import tokenizers

from harness.backbones.base import Processor
from harness.digests.code import code_digest, reachable
from tasks.data.columns import Arrays, kept_arrays

KEPT_FROM = 20_000
"""Distinct texts from which their tokens are kept; fewer are tokenised in a second."""


class Tokens(Sequence[np.ndarray]):
    """Token ids of texts, each `(L,)` int32. Equal texts share their ids.

    lengths: `(N,)` number of tokens of each text.
    """

    def __init__(self, ids: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> None:
        self._ids, self._offsets, self._rows = ids, offsets, rows
        self.lengths = np.diff(offsets)[rows]

    def __getitem__(self, place: int) -> np.ndarray:  # type: ignore[override]
        row = self._rows[place]
        return self._ids[self._offsets[row] : self._offsets[row + 1]]

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, places: Sequence[int]) -> Tokens:
        """The tokens of some of the texts."""
        return Tokens(self._ids, self._offsets, self._rows[np.asarray(places, dtype=np.int64)])


def tokenize(processor: Processor, texts: Sequence[str]) -> Tokens:
    """Token ids of each text; repeated texts are tokenised once."""
    index: dict[str, int] = {}
    rows = np.fromiter((index.setdefault(text, len(index)) for text in texts), np.int64, len(texts))
    distinct = list(index)

    def make() -> Arrays:
        ids = processor.tokenize(distinct)
        offsets = np.zeros(len(ids) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in ids], out=offsets[1:])
        flat = np.fromiter((token for row in ids for token in row), np.int32, int(offsets[-1]))
        return {"ids": flat, "offsets": offsets}

    if len(distinct) < KEPT_FROM:
        arrays = make()
    else:
        content = hashlib.sha256("\0".join(distinct).encode()).hexdigest()
        code = code_digest(reachable([type(processor)], ["harness"]))
        settings = [processor.describe(), type(processor).__qualname__, code, tokenizers.__version__]
        arrays = kept_arrays(["tokens", content, *settings], make)
    return Tokens(arrays["ids"], arrays["offsets"], rows)
