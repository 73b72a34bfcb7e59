"""The base class of backbones: a pretrained encoder in two stages, the second an ordered list of blocks.

`encode` turns text and image into streams of hidden states; `fuse` sends them through the blocks and pools the result.
Methods replace blocks, wrap them, or insert modules into their slots.
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
from harness.errors import UserError


class Processor(Protocol):
    """Turns texts and images into the inputs of the backbone."""

    max_text_length: int
    pad_id: int
    granularity: int
    """Heights and widths of processed images are multiples of this (the patch size), in pixels."""

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, truncated to `max_text_length`."""

    def resize(self, image: Image.Image) -> np.ndarray:
        """`(H, W, 3)` uint8, an RGB image at the backbone's input size. Deterministic."""

    def normalize(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` uint8 → float32, normalised as in the backbone's pre-training."""

    def describe(self) -> dict[str, Any]:
        """Settings that change the result (image size, text length, vocabulary digest), for the record."""


@dataclass(frozen=True)
class HuggingFaceForm:
    """A backbone as a model of Hugging Face's library, for exporting tuned weights.

    model: the library's model with the backbone's weights, in evaluation mode. Its parameters have the same names in
        the backbone, after the prefix `model.`.
    layers: path of the list of layers within `model`.
    projections: paths of the projections within a layer, by role (`Block.projections`).
    imports: line of Python that imports the model's class.
    loading: lines of Python that create `model` from the pretrained weights `BASE`.
    loading_common: lines of Python that load `common`, the tensors that every method trains, into `model`.
    """

    model: Any
    layers: str
    projections: Mapping[str, str]
    imports: str
    loading: str
    loading_common: str


class Backbone(nn.Module, ABC):
    """A pretrained vision-language encoder; the interface for methods and tasks."""

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
    """Called on the streams between `encode` and the first block (shallow prompts). It must treat each stream
    separately: when pairs are scored, streams have different numbers of rows."""
    frame: nn.Module | None
    """Called on the normalised pixels `(B, 3, H, W)` and the sizes of `Inputs` before an image is embedded (visual
    prompts); None: images are embedded as they are."""
    initializer_range: float
    pretrained_heads: Mapping[str, Tensor] = MappingProxyType({})
    """Tensors of the heads in the weights, under their original names."""
    pooled_token_only: bool = False
    """True if the last blocks compute only the pooled token in training and in ranking. Results are the same. Costs are
    measured with all tokens, as published. See `Method.per_token`."""
    fixed_tokens: bool = False
    """True if the number of tokens must not change between blocks, because links add encoder states to them."""
    unread_parameters: int = 0
    """Parameters of the published model that no forward pass reads. They are not built; papers' totals have them."""
    tunes_text_types: bool = False
    """True if `common_parameters` includes the text embedding's own token types (ViLT), as in the published DAS."""
    encoder: Callable[[Backbone, Inputs], Streams] | None = None
    """Replaces `encode` in `forward` while it is set (`harness.training.encoder_cache`)."""

    def __init__(self) -> None:
        super().__init__()
        self.frame = None

    def framed(self, pixels: Tensor, image_sizes: Tensor | None) -> Tensor:
        """The pixels with the frame, if there is one."""
        return pixels if self.frame is None else self.frame(pixels, image_sizes)

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
        """The result of `encode`, or of `encoder` if that is set."""
        return self.encode(inputs) if self.encoder is None else self.encoder(self, inputs)

    def forward_pairs(self, inputs: Inputs) -> Tensor:
        """Pooled features `(B · T, feature_dim)` of B images with T consecutive texts each.

        The result is that of `forward` on `inputs.paired()`. A backbone may compute parts that depend on one side only
        once.
        """
        return self(inputs.paired())

    def encoders(self) -> dict[str, list[nn.Module]]:
        """All modules that `encode_text` (key "text") and `encode_image` (key "image") run.

        Empty if `encode` does not consist of two independent halves. If it does, `encode` is
        `join(encode_text(…), encode_image(…))`.
        """
        return {}

    def encode_text(self, input_ids: Tensor, text_mask: Tensor | None) -> Tensor:
        """The text half of `encode`: `(B, L)` → `(B, L, D)`. Each row depends only on itself, without its padding."""
        raise TypeError(f"{self.name}: encode has no halves")

    def encode_image(self, pixels: Tensor, image_sizes: Tensor | None) -> Tensor:
        """The image half of `encode`: `(B, 3, H, W)` → `(B, S, D)`. Each row depends only on itself."""
        raise TypeError(f"{self.name}: encode has no halves")

    def join(self, text: Tensor, image: Tensor, inputs: Inputs) -> Streams:
        """The halves of `encode` as streams, which may have different numbers of rows."""
        raise TypeError(f"{self.name}: encode has no halves")

    @abstractmethod
    def common_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that train under every method, besides the head: poolers and token-type embeddings."""

    def beside_blocks(self) -> list[nn.Module]:
        """Modules that train at the blocks' learning rate where that differs: the poolers."""
        return self.components().get("pooler", [])

    def classification_token(self) -> Tensor | None:
        """Initial value `(D,)` of a trained token in the first text position; None if there is none (ViLT)."""
        return None

    @abstractmethod
    def components(self) -> dict[str, list[nn.Module]]:
        """Modules by component (`embeddings`, `fusion`, `pooler`; METER: `text encoder`, …).

        Each parameter of the pretrained backbone is in exactly one component.
        """

    @abstractmethod
    def example_inputs(
        self, batch_size: int, text_length: int, image_size: tuple[int, int], generator: torch.Generator
    ) -> Inputs:
        """Random inputs without padding, for measurements. image_size: height and width in pixels."""

    @abstractmethod
    def widen_token_types(self, count: int) -> None:
        """Extend the table of token types to `count` rows by copies of the last row (NLVR2 needs 3)."""

    def published_image_size(self, images_per_example: int) -> int | None:
        """Image size in pixels of the published results on tasks with this number of images per example.

        None if it is the backbone's default.
        """
        return None

    def hugging_face_form(self) -> HuggingFaceForm | None:
        """The backbone as a model of Hugging Face's library, with its current weights; None if there is none."""
        return None

    @property
    def block_names(self) -> tuple[str, ...]:
        """Names of the loaded blocks (`joint.0` …), also after some have been skipped."""
        return self._block_names

    _block_names: tuple[str, ...]

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 (hex) of the pretrained weights and configuration as loaded."""


@dataclass(frozen=True)
class BackboneOptions:
    """A user's choices for a backbone; None means the backbone's default.

    weights: a local folder or file, a hub id, or `random` (untrained weights, for profiling).
    tokenizer: a folder or file with the vocabulary, for weights without one.
    image_size: short side (ViLT) or side (METER) of the processed image, in pixels.
    text_length: maximum text length in tokens, special tokens included.
    dropout: probability, in training, where the published code has dropout: on ViLT after the embeddings and in both
        sublayers of a block; on METER in the fusion layers and in the text encoder. By default 0 on ViLT, and 0.1 in
        METER's fusion layers alone.
    text_encoder, image_encoder: pretrained encoders that METER is assembled from: a folder, a hub id, or a package.
    """

    weights: str | None = None
    tokenizer: str | None = None
    image_size: int | None = None
    text_length: int | None = None
    dropout: float | None = None
    text_encoder: str | None = None
    image_encoder: str | None = None

    def refuse_encoders(self, name: str) -> None:
        """Raise `UserError` if encoders are given to the backbone `name`, which has its own."""
        if self.text_encoder is not None or self.image_encoder is not None:
            raise UserError(
                f"{name}: has encoders of its own; --text-encoder and --image-encoder are for meter."
            )
