"""How examples are cut into batches, and how a batch is padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.backbones.base import Processor

WINDOW_BATCHES = 20
"""Batches that are filled from one sorted window of the shuffled order."""


def plan_batches(
    count: int,
    batch_size: int,
    likeness: np.ndarray | None = None,
    generator: torch.Generator | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> list[list[int]]:
    """Indices 0 … count − 1 cut into batches, one rank's share of them.

    likeness: `(count,)` int; batches are filled with neighbours in this order, within windows of
        `WINDOW_BATCHES` batches of the shuffled order, or over all where nothing is shuffled.
    generator: shuffles; None keeps the order (of `likeness`, else of the indices).
    """
    together = batch_size * world_size
    if generator is None:
        order = np.arange(count)
        windows = [order]
    else:
        order = torch.randperm(count, generator=generator).numpy()
        span = WINDOW_BATCHES * together
        windows = [order[start : start + span] for start in range(0, count, span)]
    if likeness is not None:
        windows = [window[np.argsort(likeness[window], kind="stable")] for window in windows]
        order = np.concatenate(windows) if windows else order
    cuts = [order[start : start + together] for start in range(0, count, together)]
    if len(cuts) > 1 and len(cuts[-1]) < world_size and batch_size > 1:
        # Every rank has to have a last step: distributed training waits for all of them.
        rest = np.concatenate(cuts[-2:])
        cuts[-2:] = [rest[:-world_size], rest[-world_size:]]
    if generator is not None and likeness is not None:
        cuts = [cuts[place] for place in torch.randperm(len(cuts), generator=generator).tolist()]
    return [share.tolist() for cut in cuts if len(share := cut[rank::world_size])]


def pad_text(tokens: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor | None]:
    """`(B, L)` int64 ids padded to the longest, and the `(B, L)` mask; None if nothing is padded."""
    lengths = [len(row) for row in tokens]
    longest = max(lengths)
    if min(lengths) == longest:
        return torch.tensor(tokens, dtype=torch.int64), None
    ids = np.full((len(tokens), longest), pad_id, dtype=np.int64)
    for place, row in enumerate(tokens):
        ids[place, : len(row)] = row
    mask = np.arange(longest) < np.array(lengths)[:, None]
    return torch.from_numpy(ids), torch.from_numpy(mask)


def stack_images(images: Sequence[Tensor], processor: Processor) -> tuple[Tensor, Tensor | None]:
    """`(B, 3, H, W)` normalised pixels, 0 where padded, and `(B, 2)` sizes; None if nothing is padded."""
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    if len(set(sizes)) == 1:
        return processor.normalize(torch.stack(list(images))), None
    height, width = (max(extents) for extents in zip(*sizes, strict=True))
    canvas = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    for row, image in zip(canvas, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    pixels = processor.normalize(canvas)
    for row, (image_height, image_width) in zip(pixels, sizes, strict=True):
        row[:, image_height:] = 0
        row[:, :, image_width:] = 0
    return pixels, torch.tensor(sizes)
