"""What a backbone is: a pretrained encoder in two stages, the second an ordered list of blocks.

`encode` turns text and image into streams of hidden states; `fuse` sends them through the blocks and
pools them. Methods act on the blocks: they replace them, wrap them, or put modules into their slots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


@dataclass(frozen=True)
class Inputs:
    """One text-image pair per row, ready for `Backbone.encode`.

    input_ids: `(B, L)` int64 token ids, special tokens included, padded on the right.
    text_mask: `(B, L)` bool, True where there is a token; None if no row is padded.
    pixels: `(B, 3, H, W)` float32, normalised as the backbone wants it, padded right and below with 0.
    image_sizes: `(B, 2)` int64 height and width in pixels before padding; None if no image is padded.
    image_token_type: row of the token-type table for image tokens (ViLT on NLVR2: 1, then 2).
    image_keys: a digest of each image's processed pixels, under which its encoding may be kept; None where
        nobody took one, or where the pixels will not come again (augmented images).
    """

    input_ids: Tensor
    text_mask: Tensor | None
    pixels: Tensor
    image_sizes: Tensor | None = None
    image_token_type: int = 1
    image_keys: tuple[bytes, ...] | None = None

    def to(self, device: torch.device) -> Inputs:
        """The same inputs on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def paired(self) -> Inputs:
        """One row a pair: B images are repeated for their T = rows of text / B texts, `(B · T, …)`."""
        texts = self.texts_per_image
        sizes, keys = self.image_sizes, self.image_keys
        return replace(
            self,
            pixels=self.pixels.repeat_interleave(texts, dim=0),
            image_sizes=None if sizes is None else sizes.repeat_interleave(texts, dim=0),
            image_keys=None if keys is None else tuple(key for key in keys for _ in range(texts)),
        )

    @property
    def texts_per_image(self) -> int:
        """T where each image comes with a run of T texts, as in retrieval; elsewhere 1.

        Raises:
            ValueError: the rows of text are not a multiple of the images.
        """
        texts, remainder = divmod(len(self), self.pixels.shape[0])
        if remainder:
            raise ValueError(f"{len(self)} texts for {self.pixels.shape[0]} images")
        return texts

    def __len__(self) -> int:
        return self.input_ids.shape[0]


@dataclass(frozen=True)
class Stream:
    """Hidden states `(B, T, D)` and their mask `(B, T)` bool (True: attend; None: attend to all).

    token_type: row of the token-type table that `fuse` is still to add; None if there is nothing to add.
    """

    hidden: Tensor
    mask: Tensor | None = None
    token_type: int | None = None


Streams = dict[str, Stream]
"""Streams by name, in order: `{"joint": …}` for ViLT, `{"text": …, "image": …}` for METER."""


class Block(nn.Module, ABC):
    """One block of the fusion stage: hidden states in, hidden states of the same shape out.

    Its sublayers (attention, feed-forward, …) are named in `sublayers`, and each has two slots:

    - `sequential[name]` is applied to the sublayer's output before the residual is added;
    - `parallel[name]` reads the block's residual stream before the sublayer (un-normalised, where the
      block normalises first) and is added to the sublayer's result.

    A block that normalises after adding the residual has a third:

    - `behind[name]` reads what `parallel[name]` reads and is added to the norm's result.

    Empty slots cost nothing.
    """

    name: str
    stream: str
    sublayers: ClassVar[tuple[str, ...]]
    sequential: nn.ModuleDict
    parallel: nn.ModuleDict
    normalizes_last: ClassVar[bool] = False
    """Whether it is a post-norm block, with slots `behind`."""
    behind: nn.ModuleDict

    @abstractmethod
    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """`hidden` `(B, T, D)` → `(B, T, D)`; masks are additive float `(B, 1, 1, T)` or None.

        `context` is the other stream's hidden states, for blocks with cross-attention.
        """

    def first(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """The first token of what `forward` returns, `(B, 1, D)`; a block need not compute the others for it."""
        return self(hidden, mask, context, context_mask)[:, :1]  # type: ignore[no-any-return]

    @abstractmethod
    def projections(self) -> dict[str, nn.Linear]:
        """The block's linear maps by role: `attention.query`, `attention.key`, `attention.value`,
        `attention.output`, `mlp.up`, `mlp.down` (METER: `self_attention.…`, `cross_attention.…`).
        """

    @abstractmethod
    def set_projection(self, role: str, module: nn.Module) -> None:
        """Put `module` (a map `(…, in) → (…, out)`) in the place of the projection `role`."""


def run_block(
    block: nn.Module,
    hidden: Tensor,
    mask: Tensor | None = None,
    context: Tensor | None = None,
    context_mask: Tensor | None = None,
    first_only: bool = False,
) -> Tensor:
    """`(B, T, D)` → `(B, T, D)`, or the first token of it `(B, 1, D)`, the short way if the block has one.

    Whatever stands in a block's place may lack `Block.first`; it is then run whole.
    """
    short = getattr(block, "first", None) if first_only else None
    if short is not None:
        return short(hidden, mask, context, context_mask)  # type: ignore[no-any-return]
    result: Tensor = block(hidden, mask, context, context_mask)
    return result[:, :1] if first_only else result


class Processor(Protocol):
    """Turns raw text and photographs into what the backbone reads."""

    max_text_length: int
    pad_id: int
    granularity: int
    """Heights and widths of processed images are multiples of this (the patch size), in pixels."""

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, truncated to `max_text_length`."""

    def resize(self, image: Image.Image) -> np.ndarray:
        """`(H, W, 3)` uint8 of an RGB image at the backbone's input size. Deterministic."""

    def normalize(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` uint8 → float32 as the backbone was pretrained with."""

    def describe(self) -> dict[str, Any]:
        """Settings that change the result (image size, text length, vocabulary digest), for the record."""


class Backbone(nn.Module, ABC):
    """A pretrained vision-language encoder as methods and tasks see it."""

    name: str
    width: int
    """Hidden size D."""
    feature_dim: int
    """Size of the pooled feature."""
    blocks: nn.ModuleList
    """The fusion blocks in order; methods may replace entries."""
    stream_names: tuple[str, ...]
    processor: Processor
    base_learning_rate: float
    """Learning rate for full fine-tuning; methods scale it."""
    head_learning_rate_scale: float
    prompt: nn.Module | None
    """Called on the streams between `encode` and the first block (shallow prompts). It changes each stream by
    itself: where pairs are scored, streams come with different numbers of rows."""
    initializer_range: float
    shortens: bool = False
    """Whether in training, and where an image is ranked with many texts, the last blocks compute the pooled token
    alone, with the same result. Where cost is measured every token is computed, as published. See
    `Method.tokenwise`."""
    encoder: Callable[[Backbone, Inputs], Streams] | None = None
    """Takes the place of `encode` in `forward` while it is set (`harness.encoding`); None: nothing does."""

    @abstractmethod
    def encode(self, inputs: Inputs) -> Streams:
        """Embed both modalities: everything before the first block."""

    @abstractmethod
    def fuse(self, streams: Streams) -> Tensor:
        """Run the blocks and pool: `(B, feature_dim)`."""

    def forward(self, inputs: Inputs) -> Tensor:
        """Pooled features `(B, feature_dim)`."""
        return self.fuse(self.encoded(inputs))

    def encoded(self, inputs: Inputs) -> Streams:
        """What `encode` returns, by way of `encoder` if that is set."""
        return self.encode(inputs) if self.encoder is None else self.encoder(self, inputs)

    def forward_pairs(self, inputs: Inputs) -> Tensor:
        """Pooled features `(B · T, feature_dim)` of B images, each with its run of T texts.

        As `forward` on `inputs.paired()`; a backbone may compute once what depends on one side only.
        """
        return self(inputs.paired())

    def encoders(self) -> dict[str, list[nn.Module]]:
        """Modules that `encode_text` (under "text") and `encode_image` (under "image") run, and no others.

        Empty if `encode` does not fall into two halves, neither of which reads the other. Of a backbone that
        has them, `encode` is `join(encode_text(…), encode_image(…))`.
        """
        return {}

    def encode_text(self, input_ids: Tensor, text_mask: Tensor | None) -> Tensor:
        """The text half of `encode`: `(B, L)` → `(B, L, D)`, a function of the row alone, padding aside."""
        raise TypeError(f"{self.name}: encode has no halves")

    def encode_image(self, pixels: Tensor, image_sizes: Tensor | None) -> Tensor:
        """The image half of `encode`: `(B, 3, H, W)` → `(B, S, D)`, a function of the row alone."""
        raise TypeError(f"{self.name}: encode has no halves")

    def join(self, text: Tensor, image: Tensor, inputs: Inputs) -> Streams:
        """The halves of `encode` as streams; how many rows each has is up to the caller."""
        raise TypeError(f"{self.name}: encode has no halves")

    @abstractmethod
    def common_parameters(self) -> Iterator[nn.Parameter]:
        """What every method trains alike beside the head: poolers and token-type embeddings."""

    def classification_token(self) -> Tensor | None:
        """What a trained token in the first text position starts as `(D,)`; None if there is none (ViLT)."""
        return None

    @abstractmethod
    def components(self) -> dict[str, list[nn.Module]]:
        """Modules by component (`embeddings`, `fusion`, `pooler`; METER: `text encoder`, …).

        Disjoint and complete: each parameter of the pretrained backbone lies in exactly one.
        """

    @abstractmethod
    def example_inputs(
        self, batch_size: int, text_length: int, image_size: tuple[int, int], generator: torch.Generator
    ) -> Inputs:
        """Random unpadded inputs of the stated size (height, width in pixels), for measuring."""

    @abstractmethod
    def widen_token_types(self, count: int) -> None:
        """Give the image token-type table `count` rows, new rows a copy of the last (NLVR2 needs 3)."""

    @property
    def block_names(self) -> tuple[str, ...]:
        """Names of the blocks as loaded (`joint.0` …), also after some were skipped."""
        return self._block_names

    _block_names: tuple[str, ...]

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 (hex) of the pretrained weights and configuration as loaded."""


@dataclass(frozen=True)
class BackboneOptions:
    """What a user chooses about a backbone; each field None means the backbone's own default.

    weights: a local folder or file, a hub id, or `random` (for profiling: shapes without training).
    tokenizer: a folder or file with the vocabulary, where the weights do not bring it.
    image_size: short side (ViLT) or side (METER) of the processed image, in pixels.
    text_length: most tokens of a text, special tokens included.
    """

    weights: str | None = None
    tokenizer: str | None = None
    image_size: int | None = None
    text_length: int | None = None
