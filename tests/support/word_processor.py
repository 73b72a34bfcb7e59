"""A processor that needs no vocabulary: a token for each word, images as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass
class WordProcessor:
    """One token per letter after a start token; images keep their size, or are squeezed to `side`."""

    side: int | None = None
    max_text_length: int = 8
    pad_id: int = 9
    granularity: int = 1
    tokenized: int = 0

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        self.tokenized += len(texts)
        return [[0, *([1] * len(text))] for text in texts]

    def resize(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image if self.side is None else image.resize((self.side, self.side)))

    def normalize(self, images: Tensor) -> Tensor:
        return images.float() / 255 - 0.5

    def describe(self) -> dict[str, Any]:
        return {"side": self.side}


TASK: Any = SimpleNamespace(collate_targets=lambda examples: torch.tensor([e.target for e in examples]))
