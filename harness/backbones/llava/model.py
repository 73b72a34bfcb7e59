"""LLaVA-1.5 (Liu et al., CVPR 2024): CLIP's image encoder, a two-layer projector, and LLaMA's decoder.

Modules are Hugging Face's; the decoder layers' forward pass is ours, with the slots that methods use. `encode` returns
token embeddings and the projected image in one stream, which methods for the decoder do not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from harness.backbones.checkpoints import digest_model
from harness.backbones.generative import GenerativeBackbone
from harness.backbones.inputs import Inputs, Stream, Streams
from harness.backbones.llava.block import LlavaBlock
from harness.backbones.llava.processor import LlavaProcessor
from harness.errors import UserError


class LlavaBackbone(GenerativeBackbone):
    """LLaVA; its blocks are the decoder's layers.

    Modules that no forward pass reads are not built: the layers of the image encoder after the one whose states are
    used (`vision_feature_layer`), and the norm after them.
    """

    def __init__(
        self,
        config: LlavaConfig,
        processor: LlavaProcessor,
        name: str = "llava",
        base_learning_rate: float = 2e-5,
        head_learning_rate_scale: float = 10.0,
    ) -> None:
        """Random weights; the default rate is that of LLaVA-1.5's full tuning."""
        super().__init__()
        self.model: Any = LlavaForConditionalGeneration(config)
        tower = self.model.model.vision_tower.vision_model
        last = _layers_read(config)
        tower.encoder.layers = tower.encoder.layers[:last]
        tower.post_layernorm = nn.Identity()
        text = config.text_config
        language = self.model.model.language_model
        if language.rotary_emb.rope_type in ("dynamic", "longrope"):
            raise UserError(f"{name}: rotary positions that change with the length are not supported.")
        blocks = nn.ModuleList(LlavaBlock(text, index) for index in range(text.num_hidden_layers))
        for block, layer in zip(blocks, language.layers, strict=True):
            block.load_state_dict(layer.state_dict(), assign=True)
        language.layers = blocks
        self.config = config
        self.processor: LlavaProcessor = processor
        self.name = name
        self.width = text.hidden_size
        self.feature_dim = text.hidden_size
        self.initializer_range = text.initializer_range
        self.base_learning_rate = base_learning_rate
        self.head_learning_rate_scale = head_learning_rate_scale
        self.prompt: nn.Module | None = None
        self.pretrained_heads: Mapping[str, Tensor] = {}
        self._block_names = tuple(str(block.name) for block in blocks)
        self._digest: str | None = None

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """The decoder's layers."""
        return self.model.model.language_model.layers  # type: ignore[no-any-return]

    def encode(self, inputs: Inputs) -> Streams:
        """The prompt with the image in it: `(B, L + patches, D)`, padded on the left.

        Raises:
            UserError: the images have another size than the position embeddings.
        """
        text = self.encode_text(inputs.input_ids, inputs.text_mask)
        return self.join(text, self.encode_image(inputs.pixels, inputs.image_sizes), inputs)

    def encoders(self) -> dict[str, list[nn.Module]]:
        """The token embeddings and the image encoder; the projector trains with every method."""
        components = self.components()
        frame = [] if self.frame is None else [self.frame]
        return {"text": components["embeddings"], "image": components["image encoder"] + frame}

    def encode_text(self, input_ids: Tensor, text_mask: Tensor | None) -> Tensor:
        """Token embeddings: `(B, L)` → `(B, L, D)`."""
        return self.embed(input_ids)

    def encode_image(self, pixels: Tensor, image_sizes: Tensor | None) -> Tensor:
        """The image encoder's states of the patches, not projected: `(B, 3, H, W)` → `(B, patches, width)`."""
        height, width = pixels.shape[-2:]
        side = self.config.vision_config.image_size
        if (height, width) != (side, side) or image_sizes is not None:
            what = "padded images" if image_sizes is not None else f"images of {height}x{width} pixels"
            raise UserError(
                f"{self.name}: {what}, but its position embeddings are for whole images of {side}x{side}; "
                "leave out --image-size."
            )
        tower = self.model.model.vision_tower.vision_model
        hidden = tower.pre_layrnorm(tower.embeddings(self.framed(pixels, image_sizes)))
        states: Tensor = tower.encoder(inputs_embeds=hidden).last_hidden_state
        return states[:, 1:] if self.config.vision_feature_select_strategy == "default" else states

    def join(self, text: Tensor, image: Tensor, inputs: Inputs) -> Streams:
        """Project the image and insert it at its place in the text."""
        place = self.processor.image_position
        projected = self.model.model.multi_modal_projector(image)
        hidden = torch.cat([text[:, :place], projected, text[:, place:]], dim=1)
        mask = inputs.text_mask
        if mask is None:
            return {"joint": Stream(hidden)}
        mask = torch.cat([mask[:, :place], mask.new_ones(projected.shape[:2]), mask[:, place:]], dim=1)
        # Move padding from the right to the left.
        padding = mask.shape[1] - mask.sum(dim=1, keepdim=True)
        source = (torch.arange(mask.shape[1], device=mask.device) - padding) % mask.shape[1]
        hidden = hidden.gather(1, source[:, :, None].expand_as(hidden))
        return {"joint": Stream(hidden, mask.gather(1, source))}

    @property
    def image_start(self) -> int:
        """The tokens before the image."""
        return self.processor.image_position

    @property
    def image_end(self) -> int:
        """The tokens before the image, and those of its patches."""
        vision = self.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        if self.config.vision_feature_select_strategy != "default":
            patches += 1  # the class token
        return self.processor.image_position + patches

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings `(B, T, D)`."""
        return self.model.model.language_model.embed_tokens(tokens)  # type: ignore[no-any-return]

    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of LLaMA's rotary positions, computed in float32."""
        table = self.model.model.language_model.rotary_emb
        angles = positions[:, None, :, None].float() * table.inv_freq.float()
        angles = torch.cat([angles, angles], dim=-1)
        scale = table.attention_scaling
        return (angles.cos() * scale).to(hidden.dtype), (angles.sin() * scale).to(hidden.dtype)

    def normed(self, hidden: Tensor) -> Tensor:
        """LLaMA's last RMSNorm."""
        return self.model.model.language_model.norm(hidden)  # type: ignore[no-any-return]

    def vocabulary_logits(self, hidden: Tensor) -> Tensor:
        """The language model's head."""
        return self.model.lm_head(hidden)  # type: ignore[no-any-return]

    def common_parameters(self) -> Iterator[nn.Parameter]:
        """The projector, as in LLaVA-DAS and LLaVA-EAS."""
        yield from self.model.model.multi_modal_projector.parameters()

    def components(self) -> dict[str, list[nn.Module]]:
        """Image encoder, projector, embeddings, decoder with its norm, language-model head."""
        model = self.model.model
        language = model.language_model
        return {
            "image encoder": [model.vision_tower],
            "projector": [model.multi_modal_projector],
            "embeddings": [language.embed_tokens],
            "decoder": [language.layers, language.norm],
            "vocabulary": [self.model.lm_head],
        }

    def example_inputs(
        self, batch_size: int, text_length: int, image_size: tuple[int, int], generator: torch.Generator
    ) -> Inputs:
        """Random token ids and pixels, nothing padded. `text_length` counts no image tokens."""
        vocabulary = self.config.text_config.vocab_size
        ids = torch.randint(3, vocabulary, (batch_size, text_length), generator=generator)
        pixels = torch.randn(batch_size, 3, *image_size, generator=generator)
        return Inputs(ids, None, pixels)

    def widen_token_types(self, count: int) -> None:
        """Nothing to do: a decoder has no token types; a second image is recognised by its position."""

    def digest(self) -> str:
        """SHA-256 of weights and configuration as loaded; computed at the first call."""
        if self._digest is None:
            self._digest = digest_model(self.model)
        return self._digest


def _layers_read(config: LlavaConfig) -> int:
    """Number of layers of the image encoder up to the states that are used."""
    layer = config.vision_feature_layer
    layers = int(config.vision_config.num_hidden_layers)
    if not isinstance(layer, int) or not -layers - 1 <= layer <= layers:
        raise UserError(f"llava: vision_feature_layer {layer!r} is not supported; one layer is expected.")
    return layer if layer >= 0 else layers + 1 + layer
