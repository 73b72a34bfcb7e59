"""Divide examples into batches, and pad the texts and images of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.backbones.base import Processor

WINDOW_BATCHES = 20
"""Number of batches that are filled from one sorted window of the shuffled order."""


def plan_batches(
    count: int,
    batch_size: int,
    sort_keys: np.ndarray | None = None,
    generator: torch.Generator | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> list[list[int]]:
    """One rank's share of the indices 0 … count − 1, divided into batches.

    Every rank has as many batches as there are steps, empty ones among them. A step has the same examples whatever
    `world_size` is.

    batch_size: examples per step, of all ranks together.

    sort_keys: `(count,)` int; batches are filled with neighbours in this order, within windows of
        `WINDOW_BATCHES` batches of the shuffled order, or over all examples if nothing is shuffled.
    generator: shuffles; None keeps the order (of `sort_keys`, else of the indices).
    """
    if generator is None:
        order = np.arange(count)
        windows = [order]
    else:
        order = torch.randperm(count, generator=generator).numpy()
        span = WINDOW_BATCHES * batch_size
        windows = [order[start : start + span] for start in range(0, count, span)]
    if sort_keys is not None:
        windows = [window[np.argsort(sort_keys[window], kind="stable")] for window in windows]
        order = np.concatenate(windows) if windows else order
    steps = [order[start : start + batch_size] for start in range(0, count, batch_size)]
    if generator is not None and sort_keys is not None:
        steps = [steps[place] for place in torch.randperm(len(steps), generator=generator).tolist()]
    return [step[rank::world_size].tolist() for step in steps]


def pad_text(tokens: Sequence[Sequence[int] | np.ndarray], pad_id: int) -> tuple[Tensor, Tensor | None]:
    """`(B, L)` int64 ids padded to the longest text, and the `(B, L)` bool mask or None if nothing is padded."""
    lengths = [len(row) for row in tokens]
    longest = max(lengths)
    ids = np.full((len(tokens), longest), pad_id, dtype=np.int64)
    for place, row in enumerate(tokens):
        ids[place, : len(row)] = row
    if min(lengths) == longest:
        return torch.from_numpy(ids), None
    mask = np.arange(longest) < np.array(lengths)[:, None]
    return torch.from_numpy(ids), torch.from_numpy(mask)


def stack_images(images: Sequence[Tensor], processor: Processor) -> tuple[Tensor, Tensor | None]:
    """`(B, 3, H, W)` normalised pixels, 0 where padded, and `(B, 2)` image sizes or None if nothing is padded."""
    pixels, sizes = pad_images(images)
    return normalize(pixels, sizes, processor), sizes


def pad_images(images: Sequence[Tensor], pinned: bool = False) -> tuple[Tensor, Tensor | None]:
    """`(B, 3, H, W)` uint8, undefined where padded, and `(B, 2)` image sizes or None if nothing is padded.

    pinned: in page-locked memory, from which a GPU copies by itself.
    """
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = (max(extents) for extents in zip(*sizes, strict=True))
    pixels = torch.empty(len(images), 3, height, width, dtype=torch.uint8, pin_memory=pinned)
    for row, image in zip(pixels, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return pixels, None if len(set(sizes)) == 1 else torch.tensor(sizes)


def normalize(pixels: Tensor, sizes: Tensor | None, processor: Processor) -> Tensor:
    """Normalised float32 pixels of what `pad_images` returns, 0 where padded, on the device of `pixels`."""
    normalized = processor.normalize(pixels)
    if sizes is None:
        return normalized
    heights, widths = sizes.to(pixels.device, non_blocking=True)[:, :, None].unbind(1)
    below = torch.arange(pixels.shape[2], device=pixels.device) >= heights
    beside = torch.arange(pixels.shape[3], device=pixels.device) >= widths
    return normalized.masked_fill_((below[:, :, None] | beside[:, None, :])[:, None], 0)
