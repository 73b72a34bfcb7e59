"""METER's text and image processing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.processors import RobertaProcessing
from torch import Tensor

from harness.errors import UserError

MEAN = (0.48145466, 0.4578275, 0.40821073)


STANDARD_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's mean and standard deviation of each channel, for pixels in 0…1."""


_LONGEST = 16
"""Longer images, in short sides, are cropped before they are scaled; no photograph is that long."""


class MeterProcessor:
    """Byte-level BPE tokens; images scaled to a short side of `image_size` and cropped to the central square.

    vocabulary: a folder with `tokenizer.json`, or with RoBERTa's `vocab.json` and `merges.txt`; or the file
        `tokenizer.json` itself.
    image_size, patch_size: in pixels.
    text_length: maximum text length in tokens, special ones included.

    Raises:
        UserError: the image size is not a multiple of the patch size.
    """

    def __init__(self, vocabulary: Path | None, image_size: int, patch_size: int, text_length: int) -> None:
        self.vocabulary = vocabulary
        self.image_size = image_size
        self.granularity = patch_size
        self.max_text_length = text_length
        self.pad_id = 1
        self._tokenizer: Tokenizer | None = None
        if image_size % patch_size or image_size < patch_size:
            raise UserError(
                f"Image size {image_size} is not a multiple of the patch size {patch_size}; "
                f"try {max(1, image_size // patch_size) * patch_size}."
            )

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read on first use.

        Raises:
            UserError: there is no vocabulary, or it cannot be read.
        """
        if self._tokenizer is None:
            if self.vocabulary is None:
                raise UserError(
                    "These weights come without a vocabulary; pass the folder of roberta-base's tokenizer.json (or "
                    "vocab.json and merges.txt) with --tokenizer."
                )
            self._tokenizer = read_tokenizer(vocabulary_files(self.vocabulary))
            self._tokenizer.enable_truncation(self.max_text_length)
        return self._tokenizer

    def files(self) -> list[Path]:
        """The vocabulary's files; none without a vocabulary."""
        return vocabulary_files(self.vocabulary) if self.vocabulary is not None else []

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids with `<s>` and `</s>`, truncated to `max_text_length`."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]

    def resize(self, image: Image.Image) -> np.ndarray:
        """`(image_size, image_size, 3)` uint8: scaled bicubically, then cropped to the centre."""
        side = self.image_size
        width, height = image.size
        short = min(width, height)
        scaled = (max(side, int(side * width / short)), max(side, int(side * height / short)))
        left, top = (round((length - side) / 2) for length in scaled)
        if max(scaled) > _LONGEST * side:
            # Only the square is computed: scaled as a whole, a strip of 1×5000 pixels takes gigabytes.
            x, y = width / scaled[0], height / scaled[1]
            square = (left * x, top * y, (left + side) * x, (top + side) * y)
            return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, square))
        if image.size != scaled:
            image = image.resize(scaled, Image.Resampling.BICUBIC)
        return np.asarray(image.crop((left, top, left + side, top + side)))

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 0…255 → float32 with CLIP's mean and standard deviation."""
        return (
            images.to(torch.float32)
            .sub_(_levels(MEAN, images.device))
            .div_(_levels(STANDARD_DEVIATION, images.device))
        )

    def describe(self) -> dict[str, Any]:
        """Image size, patch size, text length, digest of the vocabulary."""
        files = self.files()
        contents = b"".join(path.read_bytes() for path in files)
        return {
            "image_size": self.image_size,
            "patch_size": self.granularity,
            "text_length": self.max_text_length,
            "vocabulary": hashlib.sha256(contents).hexdigest()[:16] if files else None,
        }


@cache
def _levels(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """`(3, 1, 1)` values of the channels in levels 0…255; kept, as copying them to a GPU would wait for it."""
    with torch.inference_mode(False):
        return 255 * torch.tensor(values, device=device).view(3, 1, 1)


def vocabulary_files(vocabulary: Path) -> list[Path]:
    """The files that make up a vocabulary: `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Raises:
        UserError: they are missing.
    """
    if vocabulary.is_file():
        return [vocabulary]
    if (whole := vocabulary / "tokenizer.json").is_file():
        return [whole]
    parts = [vocabulary / "vocab.json", vocabulary / "merges.txt"]
    if all(part.is_file() for part in parts):
        return parts
    raise UserError(f"{vocabulary}: neither tokenizer.json nor vocab.json and merges.txt in this folder.")


def read_tokenizer(files: Sequence[Path]) -> Tokenizer:
    """RoBERTa's tokenizer from the files that `vocabulary_files` found.

    Raises:
        UserError: a file cannot be read as a vocabulary.
    """
    try:
        if len(files) == 1:
            return Tokenizer.from_file(str(files[0]))
        pairs = ByteLevelBPETokenizer.from_file(*map(str, files))
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"{files[0]}: cannot be read as a vocabulary ({error}).") from error
    special = [(token, pairs.token_to_id(token)) for token in ("</s>", "<s>")]
    if any(number is None for _, number in special):
        raise UserError(f"{files[0]}: has no <s> or </s>; it is not RoBERTa's vocabulary.")
    tokenizer: Tokenizer = pairs._tokenizer
    tokenizer.post_processor = RobertaProcessing(*special, trim_offsets=True, add_prefix_space=False)
    return tokenizer
