"""Load images of any encoding as 8-bit RGB, and cache them."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.backbones.base import Processor
from harness.errors import UserError

# Everything that Pillow raises on broken files; its PNG reader even raises SyntaxError.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""


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
        _require_file(path)
        with Image.open(path) as image:
            image.load()
            turn = _TURNS.get(_orientation(image))
            return _to_rgb(image if turn is None else image.transpose(turn))
    except FileNotFoundError:
        raise UserError(f"{path}: no such image") from None
    except _BROKEN as error:
        raise UserError(f"{path}: not a readable image: {_one_line(error)}") from None


def upright_size(path: Path | str) -> tuple[int, int]:
    """Width and height in pixels of what `load_rgb` returns, from the file's header only."""
    if Path(path) == BLANK_IMAGE:
        return _BLANK_SIZE
    try:
        _require_file(path)
        with Image.open(path) as image:
            width, height = image.size
            # Pillow decodes a whole PNG to look for EXIF data after the pixels.
            look = image.format != "PNG" or "exif" in image.info
            rotated = look and _orientation(image) in _ROTATED
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


def _require_file(path: Path | str) -> None:
    """Opening a pipe or a device could wait for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - paths are texts here
        raise OSError("not a regular file")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, if there is none or the EXIF data cannot be read."""
    try:
        orientation = image.getexif().get(0x0112)
    except Exception:  # Pillow raises anything on odd EXIF data, and the pixels are sound
        return 1
    return orientation if isinstance(orientation, int) else 1


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
