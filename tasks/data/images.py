"""Load images of any encoding as 8-bit RGB, and cache them."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from harness.backbones.base import Processor
from harness.errors import UserError

# Everything that Pillow raises on broken files; its PNG reader even raises SyntaxError.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


_ROTATED = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""


BLANK_IMAGE = Path("blank image")
"""Placeholder path of an image without information: uniform mid-grey."""


_BLANK_SIZE, _MID_GREY = (64, 64), (128, 128, 128)


Decoded = Tensor | UserError
"""An image `(3, H, W)` uint8, or the error if it cannot be read."""


def load_rgb(path: Path | str) -> Image.Image:
    """The photograph as RGB, turned upright by its EXIF orientation.

    Greyscale, palette and CMYK are converted. 16-bit greyscale is scaled to 8 bits (Pillow alone would clip
    it to white). Transparent images are composited on white, as annotators saw them in their browsers.
    Raises `UserError` naming the path if it cannot be read.
    """
    if Path(path) == BLANK_IMAGE:
        return Image.new("RGB", _BLANK_SIZE, _MID_GREY)
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _to_rgb(upright)
    except FileNotFoundError:
        raise UserError(f"{path}: no such image") from None
    except _BROKEN as error:
        raise UserError(f"{path}: not a readable image: {_one_line(error)}") from None


def upright_size(path: Path | str) -> tuple[int, int]:
    """Width and height in pixels of what `load_rgb` returns, from the file's header only."""
    if Path(path) == BLANK_IMAGE:
        return _BLANK_SIZE
    try:
        with Image.open(path) as image:
            width, height = image.size
            # Pillow decodes a whole PNG to look for EXIF data after the pixels.
            look = image.format != "PNG" or "exif" in image.info
            rotated = look and image.getexif().get(0x0112) in _ROTATED
            return (height, width) if rotated else (width, height)
    except FileNotFoundError:
        raise UserError(f"{path}: no such image") from None
    except _BROKEN as error:
        raise UserError(f"{path}: not a readable image: {_one_line(error)}") from None


def decode(
    path: str, processor: Processor, change: Callable[[Image.Image], Image.Image] | None = None
) -> Decoded:
    """The image at the processor's input size, or the error; `change` is applied before resizing."""
    try:
        image = load_rgb(path)
        return to_pixels(image if change is None else change(image), processor)
    except UserError as error:
        return error


def to_pixels(image: Image.Image, processor: Processor) -> Tensor:
    """`(3, H, W)` uint8 of an RGB image at the processor's input size."""
    return torch.from_numpy(np.array(processor.resize(image).transpose(2, 0, 1), order="C"))


class ImageCache:
    """Images decoded and resized for one processor, kept in memory up to a budget.

    Share one cache among all loaders of the same processor. The first images are kept and none is ever evicted:
    an epoch visits each image once, so eviction would only remove what the next epoch needs.

    budget_mib: largest size of the cached pixels in MiB.
    skipped: paths that could not be read, with the reason.
    """

    def __init__(self, processor: Processor, budget_mib: float = 2048) -> None:
        self.processor = processor
        self.budget_bytes = int(budget_mib * 2**20)
        self.used_bytes = 0
        self.skipped: dict[str, UserError] = {}
        self._images: dict[str, Tensor] = {}
        self._shapes: dict[str, tuple[int, int]] = {}
        self._shape_of_size: dict[tuple[int, int], tuple[int, int]] = {}
        self._keys: dict[str, bytes] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._images or path in self.skipped

    def __len__(self) -> int:
        return len(self._images)

    def get(self, path: str) -> Decoded | None:
        """The image, or the error if it cannot be read; None if it must be decoded."""
        return self._images.get(path, self.skipped.get(path))

    def add(self, path: str, image: Decoded) -> None:
        """Cache `image` if the budget allows."""
        if isinstance(image, UserError):
            self.skipped[path] = image
        elif path not in self._images and self.used_bytes + image.nbytes <= self.budget_bytes:
            # A view of a worker's shared memory would keep all of it alive.
            self._images[path] = image.clone() if image._base is not None else image
            self.used_bytes += image.nbytes

    def key(self, path: str, image: Tensor) -> bytes:
        """SHA-256 of `image` (the decoded `path`) and of the processor's settings; computed once per path."""
        if path not in self._keys:
            hasher = hashlib.sha256(f"{tuple(image.shape)} {self._settings}\n".encode())
            hasher.update(image.numpy().tobytes())
            self._keys[path] = hasher.digest()
        return self._keys[path]

    def shape(self, path: str) -> tuple[int, int]:
        """Height and width in pixels of the processed image, from its header only."""
        if self._fixed_shape is not None:
            return self._fixed_shape
        if path not in self._shapes:
            self._shapes[path] = self._shape_of(upright_size(path))
        return self._shapes[path]

    @cached_property
    def _settings(self) -> str:
        return json.dumps(self.processor.describe(), sort_keys=True, default=str)

    @cached_property
    def _fixed_shape(self) -> tuple[int, int] | None:
        """The only output shape of a processor that crops or squeezes; headers are not read then."""
        shapes = {self._shape_of(size) for size in ((64, 64), (96, 64), (64, 96))}
        return shapes.pop() if len(shapes) == 1 else None

    def _shape_of(self, size: tuple[int, int]) -> tuple[int, int]:
        if size not in self._shape_of_size:
            height, width, _ = self.processor.resize(Image.new("RGB", size)).shape
            self._shape_of_size[size] = (height, width)
        return self._shape_of_size[size]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        levels = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined white level")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    # A copy even if nothing is converted, so that the file can be closed.
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
