"""BridgeTower's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import BridgeTowerConfig, CLIPVisionConfig

from harness.backbones.meter.config import MeterConfig
from harness.errors import UserError


class BridgeTowerSizes(MeterConfig):
    """BridgeTower's sizes under METER's names; the defaults are those of `bridgetower-base`.

    All 12 of CLIP's layers are used, and the fusion layers' LayerNorms have the encoders' epsilon.

    image_heads: attention heads of the image encoder, which has 64 channels per head.
    """

    model_type = "bridgetower"

    def __init__(
        self,
        image_layers: int = 12,
        image_heads: int = 12,
        image_size: int = 288,
        layer_norm_eps: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            image_layers=image_layers, image_size=image_size, layer_norm_eps=layer_norm_eps, **kwargs
        )
        self.image_heads = image_heads

    def image_encoder(self) -> CLIPVisionConfig:
        """The configuration of CLIP's image encoder."""
        config = super().image_encoder()
        config.num_attention_heads = self.image_heads
        return config


_ONLY = {
    "share_cross_modal_transformer_layers": True,
    "share_link_tower_layers": False,
    "link_tower_type": "add",
}
"""Settings of Hugging Face's class with the value in all published weights, the only supported one."""


_ONLY_VISION = {"share_layernorm": True, "remove_last_layer": False, "stop_gradient": False}


def sizes_of(settings: Mapping[str, Any]) -> BridgeTowerSizes:
    """Sizes from the contents of Hugging Face's `config.json`.

    Raises:
        UserError: a variant that is not supported, or sizes that do not fit together.
    """
    try:
        config = BridgeTowerConfig.from_dict(dict(settings))
        text, vision = config.text_config, config.vision_config
        for part, only in ((config, _ONLY), (vision, _ONLY_VISION)):
            for name, value in only.items():
                if getattr(part, name) != value:
                    raise UserError(f"{name} is {getattr(part, name)!r}; only {value!r} is supported.")
        widths = {config.hidden_size, text.hidden_size, vision.hidden_size}
        if len(widths) != 1:
            raise UserError(f"the widths of encoders and fusion layers differ ({sorted(widths)}).")
        if (
            text.num_hidden_layers < config.num_hidden_layers
            or text.num_hidden_layers != vision.num_hidden_layers
        ):
            raise UserError(
                f"{text.num_hidden_layers} text layers and {vision.num_hidden_layers} image layers do not fit "
                f"{config.num_hidden_layers} fusion depths."
            )
        return BridgeTowerSizes(
            hidden_size=config.hidden_size,
            num_attention_heads=text.num_attention_heads,
            num_hidden_layers=config.num_hidden_layers,
            intermediate_size=text.intermediate_size,
            text_layers=text.num_hidden_layers,
            text_intermediate_size=text.intermediate_size,
            vocab_size=text.vocab_size,
            max_position_embeddings=text.max_position_embeddings,
            image_layers=vision.num_hidden_layers,
            image_intermediate_size=4 * vision.hidden_size,
            image_heads=vision.hidden_size // 64,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            num_channels=vision.num_channels,
            layer_norm_eps=text.layer_norm_eps,
            bos_token_id=text.bos_token_id,
            pad_token_id=text.pad_token_id,
            eos_token_id=text.eos_token_id,
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"not a configuration of BridgeTower ({error}).") from None
