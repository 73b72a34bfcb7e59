"""METER's fusion on encoders of any kind: METER's paper compares such pairs of text and image encoders.

Each encoder keeps its width; a projection brings it to the fusion's. A grid of features has no positions of its own
that attention could read, so its tokens are normalised and get learned position embeddings behind the projection.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.backbones.inputs import Inputs
from harness.backbones.meter.config import MeterConfig
from harness.backbones.meter.encoders import build_encoder, features_of, is_square
from harness.backbones.meter.model import MeterBackbone, MeterModel
from harness.backbones.meter.processor import MeterProcessor
from harness.errors import UserError

MODEL_TYPE = "meter-assembled"


class AssembledConfig(MeterConfig):
    """Sizes of the fusion, and the settings of both encoders as `transformers` has them.

    text, image: settings of the encoders, with `model_type`.
    image_mean, image_std: by channel, for pixels in 0…1.
    image_size: side of the images in pixels; patch_size: pixels for each token along a side.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        text: dict[str, Any] | None = None,
        image: dict[str, Any] | None = None,
        image_mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        image_std: tuple[float, ...] = (0.5, 0.5, 0.5),
        **sizes: Any,
    ) -> None:
        super().__init__(**sizes)
        self.text = text or {}
        self.image = image or {}
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    @property
    def text_positions(self) -> int:
        """Maximum text length in tokens; RoBERTa's positions start after the padding id."""
        offset = self.pad_token_id + 1 if self.text.get("model_type") in WITH_OFFSET else 0
        return int(self.max_position_embeddings - offset)


WITH_OFFSET = ("roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "data2vec-text", "mpnet")
"""Model types whose positions start after the padding id."""


class ImageProjection(nn.Linear):
    """The projection of an image encoder's tokens.

    grid: the encoder gives a grid of features, which are normalised, projected, and added to learned positions of the
        mean and of the `side²` features. Otherwise it is linear, as METER's.
    """

    def __init__(self, channels: int, width: int, side: int, grid: bool) -> None:
        super().__init__(channels, width)
        self.norm = nn.LayerNorm(channels) if grid else None
        self.positions = nn.Embedding(1 + side**2, width) if grid else None

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, 1 + side², channels)` → `(B, 1 + side², width)`."""
        if self.norm is None or self.positions is None:
            return super().forward(tokens)
        return super().forward(self.norm(tokens)) + self.positions.weight


class AssembledModel(MeterModel):
    """METER's modules around other encoders."""

    config_class = AssembledConfig

    def build_encoders(self, config: MeterConfig) -> None:
        """Encoders from their settings; the projections have their widths.

        Raises:
            UserError: the image encoder reads something else.
        """
        assert isinstance(config, AssembledConfig)
        # With a mask all other implementations look into it, which waits for a GPU.
        self.text_encoder = build_encoder(config.text, config.encoder_dropout, attention="eager")
        self.image_encoder = build_encoder(config.image)
        if getattr(self.image_encoder, "main_input_name", "pixel_values") != "pixel_values":
            raise UserError(f"meter: {config.image['model_type']} is no image encoder.")
        side, channels, grid = shape_of(self.image_encoder, config.image_size)
        config.patch_size = max(1, config.image_size // side)
        self.text_projection = nn.Linear(self.text_encoder.config.hidden_size, config.hidden_size)
        self.image_projection = ImageProjection(channels, config.hidden_size, side, grid)

    def train(self, mode: bool = True) -> AssembledModel:
        """Statistics of batch norms stay those of pre-training, so that an image's features depend on it alone."""
        super().train(mode)
        for module in self.image_encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = False
        return self


def shape_of(encoder: nn.Module, image_size: int) -> tuple[int, int, bool]:
    """Tokens along a side, channels, and whether they are a grid without a class token, by one forward pass.

    Raises:
        ValueError: the encoder gives no square grid of features.
    """
    parameter = next(encoder.parameters())
    pixels = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    was, _ = encoder.training, encoder.eval()
    with torch.no_grad():
        raw = encoder(pixel_values=pixels).last_hidden_state
    encoder.train(was)
    if raw.ndim == 4:
        if raw.shape[2] != raw.shape[3]:
            raise ValueError(f"its features are {tuple(raw.shape[2:])}, expected a square grid")
        return int(raw.shape[2]), int(raw.shape[1]), True
    grid = is_square(raw.shape[1])
    return int((raw.shape[1] - (not grid)) ** 0.5), int(raw.shape[2]), grid


class AssembledBackbone(MeterBackbone):
    """METER with any pair of encoders."""

    model_class: ClassVar[type[MeterModel]] = AssembledModel
    processor: MeterProcessor

    def encode_text(self, input_ids: Tensor, text_mask: Tensor | None) -> Tensor:
        """The text encoder and its projection: `(B, L)` → `(B, L, D)`."""
        self.check_text(input_ids)
        mask = torch.ones_like(input_ids) if text_mask is None else text_mask.to(input_ids.dtype)
        with input_ids.device:  # DistilBERT makes a tensor of its own
            encoded = self.model.text_encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return self.model.text_projection(encoded)  # type: ignore[no-any-return]

    def encode_image(self, pixels: Tensor, image_sizes: Tensor | None) -> Tensor:
        """The image encoder and its projection: `(B, 3, H, W)` → `(B, 1 + tokens, D)`."""
        self.check_image(pixels, image_sizes)
        features = features_of(self.model.image_encoder, self.framed(pixels, image_sizes))
        return self.model.image_projection(features)  # type: ignore[no-any-return]

    def classification_token(self) -> Tensor:
        """The text encoder's embedding of its first special token, `(D,)`; projected if widths differ."""
        row = self.model.text_encoder.get_input_embeddings().weight[self.config.bos_token_id].detach()
        if len(row) != self.width:
            row = nn.functional.linear(row, self.model.text_projection.weight.detach())
        return row.clone()

    def published_image_size(self, images_per_example: int) -> int | None:
        """None: pairs of encoders are not those of the published results."""
        return None

    def example_inputs(
        self, batch_size: int, text_length: int, image_size: tuple[int, int], generator: torch.Generator
    ) -> Inputs:
        """Random token ids (none that pads) and pixels.

        Raises:
            UserError: the vocabulary is too small.
        """
        lowest, words = self.config.pad_token_id + 1, self.config.vocab_size
        if lowest >= words:
            raise UserError(f"{self.name}: its vocabulary of {words} entries has no words.")
        ids = torch.randint(lowest, words, (batch_size, text_length), generator=generator)
        return Inputs(ids, None, torch.randn(batch_size, 3, *image_size, generator=generator))
