"""ViLT's text and image processing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import BertWordPieceTokenizer
from torch import Tensor

from harness.errors import UserError
from harness.files import read_text

LONG_SIDE_RATIO = 1333 / 800
"""Largest ratio of the long side to the short one, as in the original's transform."""


class ViltProcessor:
    """WordPiece tokens; images scaled to a fixed short side, with both sides floored to whole patches.

    The long side is at most int(1333/800 · short side): at most 608 for a short side of 384 and patches of 32.
    """

    def __init__(self, vocabulary: Path | None, image_size: int, patch_size: int, text_length: int) -> None:
        self.vocabulary = vocabulary
        self.image_size = image_size
        self.granularity = patch_size
        self.max_text_length = text_length
        self.pad_id = 0
        self._tokenizer: BertWordPieceTokenizer | None = None
        if image_size % patch_size:
            raise UserError(
                f"Image size {image_size} is not a multiple of the patch size {patch_size}; "
                f"try {max(1, image_size // patch_size) * patch_size}."
            )

    @property
    def tokenizer(self) -> BertWordPieceTokenizer:
        """The tokenizer, read on first use."""
        if self._tokenizer is None:
            if self.vocabulary is None:
                raise UserError(
                    "These weights come without a vocabulary; pass the folder of bert-base-uncased's vocab.txt "
                    "with --tokenizer."
                )
            words = read_words(self.vocabulary)
            self._tokenizer = BertWordPieceTokenizer(
                {word: i for i, word in enumerate(words)}, lowercase=True
            )
            self._tokenizer.enable_truncation(self.max_text_length)
        return self._tokenizer

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids with [CLS] and [SEP], truncated to `max_text_length`."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]

    def target_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in pixels of the processed image, for an image of the given size."""
        short, longest = self.image_size, int(LONG_SIDE_RATIO * self.image_size)
        scale = short / min(width, height)
        scaled = (width * scale, height * scale)
        if max(scaled) > longest:
            scaled = (scaled[0] * longest / max(scaled), scaled[1] * longest / max(scaled))
        side = self.granularity
        wide, high = (max(side, int(length + 0.5) // side * side) for length in scaled)
        return wide, high

    def resize(self, image: Image.Image) -> np.ndarray:
        """`(H, W, 3)` uint8, bicubic."""
        size = self.target_size(*image.size)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        return np.asarray(image)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 0…255 → float32 −1…1 (mean and standard deviation 0.5)."""
        return images.to(torch.float32).mul_(1 / 127.5).sub_(1.0)

    def describe(self) -> dict[str, Any]:
        """Image size, patch size, text length, digest of the vocabulary."""
        vocabulary = self.vocabulary.read_bytes() if self.vocabulary else b""
        return {
            "image_size": self.image_size,
            "patch_size": self.granularity,
            "text_length": self.max_text_length,
            "vocabulary": hashlib.sha256(vocabulary).hexdigest()[:16] if vocabulary else None,
        }


def read_words(vocabulary: Path) -> list[str]:
    """The words of a `vocab.txt`, whose line numbers are their ids.

    Raises:
        UserError: it cannot be read, or is not BERT's form of a vocabulary.
    """
    words = read_text(vocabulary).value.splitlines()
    for special in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"):
        if special not in words:
            raise UserError(f"{vocabulary}: is not a vocabulary of BERT: {special} is missing.")
    return words
