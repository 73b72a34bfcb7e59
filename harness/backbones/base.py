"""What a backbone is: a pretrained encoder in two stages, the second an ordered list of blocks.

`encode` turns text and image into streams of hidden states; `fuse` sends them through the blocks and
pools them. Methods act on the blocks: they replace them, wrap them, or put modules into their slots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from harness.backbones.inputs import Inputs, Streams


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


@dataclass(frozen=True)
class HuggingFaceForm:
    """A backbone in the Hugging Face library's own form, for exporting tuned weights.

    model: the library's model with the backbone's weights, in evaluation mode. A parameter of it has the same
        name in the backbone, with `model.` before it.
    layers: path of the list of layers within `model`.
    projections: path of a projection within a layer, by its role (`Block.projections`).
    imports: the line of Python that imports the model's class.
    loading: lines of Python that make `model` from the pretrained weights `BASE`.
    loading_common: lines that put `common`, the tensors that every method trains, into `model`.
    """

    model: Any
    layers: str
    projections: Mapping[str, str]
    imports: str
    loading: str
    loading_common: str


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
    pretrained_heads: Mapping[str, Tensor] = MappingProxyType({})
    """Tensors of the original's heads that came with the weights, by the original's names."""
    pooled_token_only: bool = False
    """True if the last blocks compute only the pooled token in training and in ranking, with the same result. Costs
    are measured with all tokens, as published. See `Method.per_token`."""
    fixed_tokens: bool = False
    """True if the number of tokens must not change between blocks, because links add encoder states to them."""
    encoder: Callable[[Backbone, Inputs], Streams] | None = None
    """Replaces `encode` in `forward` while it is set (`harness.training.encoder_cache`)."""

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

    def published_image_size(self, images_per_example: int) -> int | None:
        """Side in pixels at which tasks with so many images were published on this backbone.

        None where it is the processor's own, the backbone's default.
        """
        return None

    def hugging_face_form(self) -> HuggingFaceForm | None:
        """The backbone as the Hugging Face library has it, with the weights as they are; None if it has none."""
        return None

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
