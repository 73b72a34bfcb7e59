"""A frame of trained pixels around every image (visual prompting)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbones.base import Processor
from methods.base import Inserted

PUBLISHED_SIDE, PUBLISHED_WIDTH = 224, 30


def frame_width(side: int, width: int | None = None) -> int:
    """The width in pixels at an image size, by default in the published proportion, 30 of 224."""
    return width or max(1, round(PUBLISHED_WIDTH * side / PUBLISHED_SIDE))


def frame_size(side: int, width: int) -> int:
    """Number of values of a frame: 3 (S² − (S − 2 p)²)."""
    return 3 * (side**2 - (side - 2 * width) ** 2)


class Frame(Inserted):
    """Shrinks every image and puts a frame of trained pixels around it; used as `Backbone.frame`.

    The frame is drawn for images of S × S pixels. For another size it is resized, so that its widths keep their
    proportion to the image's sides; a padded image gets its own frame, inside the padding. Values are pixels in 0…1
    and not clamped; they start at 0, which is black.

    values: `(3, n)`, row by row without the interior.
    side: S. width: of the frame, in pixels at this size.
    processor: of the backbone; its normalisation is applied to the frame too.
    """

    places: Tensor
    offset: Tensor
    scale: Tensor

    def __init__(self, values: Tensor, side: int, width: int, processor: Processor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.side = side
        self.width = width
        levels = torch.tensor([0, 255], dtype=torch.uint8, device="cpu").view(2, 1, 1, 1).expand(2, 3, 1, 1)
        black, white = processor.normalize(levels).view(2, 3, 1, 1)
        self.register_buffer("offset", black, persistent=False)
        self.register_buffer("scale", white - black, persistent=False)
        border = torch.ones(side, side, dtype=torch.bool, device="cpu")
        border[width : side - width, width : side - width] = False
        self.register_buffer("places", border.flatten().nonzero()[:, 0], persistent=False)
        self.seen: list[tuple[Tensor, Tensor | None]] = []
        self._mode = "remembering"

    def canvas(self) -> Tensor:
        """The frame as an image `(3, S, S)` in 0…1, 0 inside."""
        flat = self.values.new_zeros(3, self.side**2).index_copy(1, self.places, self.values)
        return flat.view(3, self.side, self.side)

    def forward(self, pixels: Tensor, image_sizes: Tensor | None) -> Tensor:
        """Normalised pixels `(B, 3, H, W)` → the same, framed. image_sizes: as in `Inputs`."""
        if self._mode == "off":
            return pixels
        if self.training and self._mode == "remembering":
            self.seen.append((pixels, image_sizes))
        if image_sizes is None:
            return self._framed(pixels, *pixels.shape[-2:])
        framed: list[Tensor] = []
        for image, (height, width) in zip(pixels, image_sizes.tolist(), strict=True):
            own = self._framed(image[None, :, :height, :width], height, width)
            framed.append(F.pad(own, (0, pixels.shape[-1] - width, 0, pixels.shape[-2] - height)))
        return torch.cat(framed)

    def _framed(self, pixels: Tensor, height: int, width: int) -> Tensor:
        high, wide = (max(1, round(self.width * size / self.side)) for size in (height, width))
        inner = F.interpolate(
            pixels, size=(height - 2 * high, width - 2 * wide), mode="bilinear", antialias=True
        )
        canvas = self.canvas()
        if (height, width) != (self.side, self.side):
            resized = F.interpolate(canvas[None], size=(height, width), mode="bilinear", antialias=True)
            canvas = resized[0]
        border = canvas.new_ones(height, width)
        border[high : height - high, wide : width - wide] = 0
        drawn = ((self.offset + self.scale * canvas) * border).to(pixels.dtype)
        return F.pad(inner, (wide, wide, high, high)) + drawn

    def take_seen(self) -> list[tuple[Tensor, Tensor | None]]:
        """The pixels that have come in training since the last call, not framed, with their sizes."""
        seen, self.seen = self.seen, []
        return seen

    @contextmanager
    def mode(self, name: str) -> Iterator[None]:
        """Within the block: `off`, images stay as they are; `quiet`, they are framed and not remembered."""
        before, self._mode = self._mode, name
        try:
            yield
        finally:
            self._mode = before

    def zero_one(self, pixels: Tensor) -> Tensor:
        """Normalised pixels `(B, 3, H, W)` as they are in 0…1."""
        return (pixels - self.offset.to(pixels.dtype)) / self.scale.to(pixels.dtype)
