"""Inputs of a backbone (text and images) and of its second stage (streams of hidden states)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """One text-image pair per row, ready for `Backbone.encode`.

    input_ids: `(B, L)` int64 token ids, special tokens included, padded on the right.
    text_mask: `(B, L)` bool, True for tokens, False for padding; None if no row is padded.
    pixels: `(B, 3, H, W)` float32, normalised as the backbone expects, padded right and below with 0.
    image_sizes: `(B, 2)` int64 height and width in pixels before padding; None if no image is padded. Always on the
        CPU: shapes follow from them, and reading them from a GPU would wait for it.
    image_token_type: row of the token-type table for image tokens (ViLT on NLVR2: 1, then 2).
    image_keys: a digest of each image's processed pixels, under which its encoding may be cached; None if not
        computed, or if the pixels do not occur again (augmented images).
    host_ids: `(B, L)` int64 token ids, -1 where padded, always on the CPU: reading those of a GPU would wait for it.
        None if not given; see `ids_on_host`.
    """

    input_ids: Tensor
    text_mask: Tensor | None
    pixels: Tensor
    image_sizes: Tensor | None = None
    image_token_type: int = 1
    image_keys: tuple[bytes, ...] | None = None
    host_ids: Tensor | None = None

    def to(self, device: torch.device) -> Inputs:
        """The same inputs on `device`, except what is always on the CPU."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in self.tensors().items()
        }
        return replace(self, **moved)

    def pin_memory(self) -> Inputs:
        """The same inputs in page-locked memory, from which a GPU copies by itself."""
        pinned: dict[str, Any] = {name: value.pin_memory() for name, value in self.tensors().items()}
        return replace(self, **pinned)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by field, except those that are always on the CPU."""
        return {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name not in ("image_sizes", "host_ids")
        }

    def ids_on_host(self) -> Tensor:
        """`(B, L)` int64 token ids on the CPU, -1 where padded. Waits for a GPU unless `host_ids` is given."""
        return padded_ids(self.input_ids, self.text_mask).cpu() if self.host_ids is None else self.host_ids

    def paired(self) -> Inputs:
        """One row per pair: each of B images is repeated for its T = rows of text / B texts, `(B · T, …)`."""
        texts = self.texts_per_image
        sizes, keys = self.image_sizes, self.image_keys
        return replace(
            self,
            pixels=self.pixels.repeat_interleave(texts, dim=0),
            image_sizes=None if sizes is None else sizes.repeat_interleave(texts, dim=0),
            image_keys=None if keys is None else tuple(key for key in keys for _ in range(texts)),
        )

    def examples(self, start: int, stop: int) -> Inputs:
        """The images `start` to `stop` (exclusive) with their texts."""
        texts = slice(start * self.texts_per_image, stop * self.texts_per_image)
        images = slice(start, stop)
        return replace(
            self,
            input_ids=self.input_ids[texts],
            text_mask=None if self.text_mask is None else self.text_mask[texts],
            pixels=self.pixels[images],
            image_sizes=None if self.image_sizes is None else self.image_sizes[images],
            image_keys=None if self.image_keys is None else self.image_keys[images],
            host_ids=None if self.host_ids is None else self.host_ids[texts],
        )

    @property
    def texts_per_image(self) -> int:
        """T if each image comes with T consecutive texts, as in retrieval; otherwise 1.

        Raises:
            ValueError: the number of texts is not a multiple of the number of images.
        """
        texts, remainder = divmod(len(self), self.pixels.shape[0])
        if remainder:
            raise ValueError(f"{len(self)} texts for {self.pixels.shape[0]} images")
        return texts

    def __len__(self) -> int:
        return self.input_ids.shape[0]


def padded_ids(input_ids: Tensor, text_mask: Tensor | None) -> Tensor:
    """`(B, L)` token ids, -1 where padded, which no token has."""
    return input_ids if text_mask is None else input_ids.masked_fill(~text_mask, -1)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, which is on the CPU, on `device`. The CPU does not wait for a GPU."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


@dataclass(frozen=True)
class Stream:
    """Hidden states `(B, T, D)` and their mask `(B, T)` bool (True: attend; None: attend to all).

    token_type: row of the token-type table that `fuse` will add; None if there is nothing to add.
    text_length: in a stream that joins both modalities, number of leading tokens that are text; else None.
    links: encoder states `(B, T, D)` that the backbone adds before its later blocks, in that order; none in most.
    """

    hidden: Tensor
    mask: Tensor | None = None
    token_type: int | None = None
    text_length: int | None = None
    links: tuple[Tensor, ...] = ()


Streams = dict[str, Stream]
"""Streams by name, in order: `{"joint": …}` for ViLT, `{"text": …, "image": …}` for METER."""
