"""Photographs with captions from one of Karpathy's files, and the cached features of a frozen image encoder."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.backbones.meter.assembled import AssembledBackbone
from harness.backbones.meter.encoders import features_of
from harness.digests import digest_state
from harness.errors import UserError
from harness.files import write_atomically
from tasks.data.images import load_rgb, to_pixels
from tasks.retrieval.files import dataset_of, find_dataset, image_folder, image_name, read_captions

PART = 256
"""Images in one file of cached features."""
CHUNK = 16
"""Images encoded together."""


@dataclass(frozen=True)
class Captioned:
    """Images of one or more splits.

    paths: one per image. tokens: ids of every caption, special tokens included, by image. digest: SHA-256 (hex) of
    the Karpathy file.
    """

    paths: tuple[Path, ...]
    tokens: tuple[tuple[list[int], ...], ...]
    digest: str


def read_captioned(source: Path, backbone: AssembledBackbone, *splits: str) -> Captioned:
    """The captioned images of some splits.

    source: the file, or its folder.

    Raises:
        UserError: the file cannot be read, or has no such images.
    """
    root = source if source.is_dir() else source.parent
    captions = read_captions(find_dataset(root, "auto") if source.is_dir() else source)
    chosen = captions.of(*splits)
    if not chosen:
        raise UserError(f"{captions.path}: has no images of split {' or '.join(splits)}.")
    images = image_folder(root, dataset_of(captions.path))
    texts = [caption.text for photograph in chosen for caption in photograph.captions]
    ids = iter(backbone.processor.tokenize(texts))
    tokens = tuple(tuple(next(ids) for _ in photograph.captions) for photograph in chosen)
    paths = tuple(root / image_name(photograph, images) for photograph in chosen)
    return Captioned(paths, tokens, captions.digest)


class Features:
    """Output of the frozen image encoder for all images, in files of `PART` images that are read as needed.

    Half precision, except where a value exceeds its range. An interrupted computation continues with the next file.
    """

    def __init__(
        self,
        backbone: AssembledBackbone,
        paths: Sequence[Path],
        folder: Path,
        on_image: Callable[[int], None] = lambda done: None,
    ) -> None:
        """folder: where the files are kept, below a folder named after encoder, image size and images.

        on_image: called with the number of images that are done.

        Raises:
            UserError: an image cannot be read, or the folder cannot be written.
        """
        processing = backbone.processor.describe()
        settings = {name: processing[name] for name in ("image_size", "mean", "std")}
        settings["images"] = [path.name for path in paths]
        name = digest_state(backbone.model.image_encoder.state_dict(), settings)[:16]
        self._parts: list[np.ndarray] = []
        for start in range(0, len(paths), PART):
            file = folder / name / f"part-{start // PART:05}.npy"
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                buffer = io.BytesIO()
                np.save(buffer, self._encode(backbone, paths[start : start + PART]))
                write_atomically(file, buffer.getvalue())
            self._parts.append(np.load(file, mmap_mode="r"))
            on_image(min(start + PART, len(paths)))

    @staticmethod
    def _encode(backbone: AssembledBackbone, paths: Sequence[Path]) -> np.ndarray:
        rows = []
        for start in range(0, len(paths), CHUNK):
            pixels = torch.stack(
                [to_pixels(load_rgb(path), backbone.processor) for path in paths[start : start + CHUNK]]
            )
            with torch.no_grad():
                rows.append(
                    features_of(backbone.model.image_encoder, backbone.processor.normalize(pixels)).numpy()
                )
        whole = np.concatenate(rows)
        half = whole.astype(np.float16)
        return half if np.isfinite(half).all() else whole

    def __getitem__(self, images: Sequence[int]) -> Tensor:
        """`(B, 1 + tokens, C)` float32 of some images by number."""
        rows = [self._parts[index // PART][index % PART] for index in images]
        return torch.from_numpy(np.stack(rows).astype(np.float32))


@dataclass(frozen=True)
class Pairs:
    """B different images, each with one of its captions of L tokens.

    images: numbers of the images. ids `(B, L)`, padded; mask `(B, L)` True for tokens.
    masked: `ids` with some words masked. hidden: `(B, L)` True where a word is masked.
    """

    images: list[int]
    ids: Tensor
    mask: Tensor
    masked: Tensor
    hidden: Tensor


def draw_pairs(
    captioned: Captioned, size: int, rate: float, mask_id: int, pad_id: int, rng: np.random.Generator
) -> Pairs:
    """Draw a batch. Each word is masked with probability `rate`, at least one of a caption."""
    count = len(captioned.paths)
    images = rng.choice(count, min(size, count), replace=False).tolist()
    texts = [captioned.tokens[image][rng.integers(len(captioned.tokens[image]))] for image in images]
    ids = torch.full((len(texts), max(map(len, texts))), pad_id)
    hidden = torch.zeros(ids.shape, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        inner = max(1, len(text) - 2)
        chosen = np.flatnonzero(rng.random(inner) < rate)
        hidden[row, 1 + (chosen if len(chosen) else rng.integers(inner, size=1))] = True
    lengths = torch.tensor([len(text) for text in texts])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return Pairs(images, ids, mask, ids.masked_fill(hidden, mask_id), hidden)
