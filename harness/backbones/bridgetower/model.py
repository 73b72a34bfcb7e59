"""BridgeTower (Xu et al., AAAI 2023): METER with links from the top layers of both encoders to the fusion layers.

The fusion layers are METER's, so methods act on them as they do there. Before each depth but the first, a link adds
the state of a higher encoder layer to each stream and normalises the sum. Links belong to the backbone, not to a
block: if a block is skipped, its link stays. `encode` returns the states of the top layers, one per depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from harness.backbones.block import Tokens
from harness.backbones.bridgetower.config import BridgeTowerSizes
from harness.backbones.inputs import Inputs, Stream, Streams
from harness.backbones.masks import additive_mask
from harness.backbones.meter.model import STREAMS, MeterBackbone, MeterModel


class BridgeTowerModel(MeterModel):
    """METER's modules, the norms before the first depth, and one link per stream and later depth.

    links: LayerNorms, the text's by depth, then the image's by depth.
    """

    config_class = BridgeTowerSizes

    def __init__(self, config: BridgeTowerSizes) -> None:
        super().__init__(config)

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

        self.text_norm = norm()
        self.image_norm = norm()
        self.links = nn.ModuleList(norm() for _ in range(len(STREAMS) * (config.num_hidden_layers - 1)))


class BridgeTowerBackbone(MeterBackbone):
    """BridgeTower as a backbone of the classification tasks."""

    fixed_tokens: bool = True
    model_class: ClassVar[type[MeterModel]] = BridgeTowerModel

    def join(self, text: Tensor, image: Tensor, inputs: Inputs) -> Streams:
        """Streams with the input of the first depth and the states for the links; `fuse` adds token types."""
        states = {"text": text.unbind(2), "image": image.unbind(2)}
        types = {"text": 0, "image": inputs.image_token_type}
        masks = {"text": inputs.text_mask, "image": None}
        return {
            name: Stream(states[name][0], masks[name], types[name], links=states[name][1:])
            for name in STREAMS
        }

    def encode_text(self, input_ids: Tensor, text_mask: Tensor | None) -> Tensor:
        """States of RoBERTa's top layers, projected: `(B, L)` → `(B, L, depths, D)`."""
        self.check_text(input_ids)
        encoder = self.model.text_encoder
        hidden = encoder.embeddings(input_ids)
        mask = additive_mask(text_mask, hidden)
        states = encoder.encoder(hidden, attention_mask=mask, output_hidden_states=True).hidden_states
        return self.model.text_projection(self._top(states))  # type: ignore[no-any-return]

    def encode_image(self, pixels: Tensor, image_sizes: Tensor | None) -> Tensor:
        """States of CLIP's top layers, normalised and projected: `(B, 3, H, W)` → `(B, 1 + patches, depths, D)`."""
        self.check_image(pixels, image_sizes)
        encoder = self.model.image_encoder
        hidden = encoder.pre_layrnorm(encoder.embeddings(self.framed(pixels, image_sizes)))
        states = encoder.encoder(inputs_embeds=hidden, output_hidden_states=True).hidden_states
        return self.model.image_projection(encoder.post_layernorm(self._top(states)))  # type: ignore[no-any-return]

    def _top(self, states: Sequence[Tensor]) -> Tensor:
        """The states of the last layers, one per depth, `(B, T, depths, D)`."""
        return torch.stack(tuple(states[-self.config.num_hidden_layers :]), dim=2)

    def enter(self, streams: Streams) -> dict[str, Tokens]:
        """The normalised input of the first depth. Token types are added to the links' states too."""
        norms = {"text": self.model.text_norm, "image": self.model.image_norm}
        entered = super().enter(streams)
        return {name: tokens.with_hidden(norms[name](tokens.hidden)) for name, tokens in entered.items()}

    def link(self, name: str, depth: int, tokens: Tokens) -> Tokens:
        """The normalised sum of the tokens and the encoder state of this depth."""
        if depth == 0:
            return tokens
        place = STREAMS.index(name) * (self.config.num_hidden_layers - 1) + depth - 1
        return tokens.with_hidden(self.model.links[place](tokens.hidden + tokens.links[depth - 1]))

    def components(self) -> dict[str, list[nn.Module]]:
        """As METER's; norms and links belong to the fusion."""
        components, model = super().components(), self.model
        components["fusion"] += [model.text_norm, model.image_norm, model.links]
        return components
