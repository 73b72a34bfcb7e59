"""METER's configuration."""

from __future__ import annotations

from typing import Any

from transformers import BridgeTowerConfig, CLIPVisionConfig, RobertaConfig
from transformers.configuration_utils import PretrainedConfig

ENCODER_LAYER_NORM_EPS = 1e-5
"""Epsilon of the LayerNorms of RoBERTa and CLIP."""


class MeterConfig(PretrainedConfig):
    """METER's sizes; the defaults are the published ones (CLIP-ViT-B/16 and RoBERTa-base).

    hidden_size: width of both encoders and of the fusion layers.
    num_hidden_layers: number of co-attention depths; each has a text layer and an image layer.
    intermediate_size: of the fusion layers; text_ and image_intermediate_size: of the encoders.
    image_layers: 11, as METER leaves out the last of CLIP's 12.
    image_size: side of the square image in pixels, which the position embeddings cover.
    hidden_dropout_prob, attention_probs_dropout_prob: of the fusion layers, 0.1 as published.
    encoder_dropout: of the text encoder. It is 0 by default, so that the encoders' output depends on the input alone;
        the published code has RoBERTa's 0.1, and none in the image encoder.
    """

    model_type = "meter"
    encoder_dropout: float = 0.0  # no field: the digest of a configuration without it stays the same

    def __init__(
        self,
        hidden_size: int = 768,
        num_attention_heads: int = 12,
        num_hidden_layers: int = 6,
        intermediate_size: int = 3072,
        text_layers: int = 12,
        text_intermediate_size: int = 3072,
        vocab_size: int = 50265,
        max_position_embeddings: int = 514,
        image_layers: int = 11,
        image_intermediate_size: int = 3072,
        image_size: int = 384,
        patch_size: int = 16,
        num_channels: int = 3,
        modality_type_vocab_size: int = 2,
        layer_norm_eps: float = 1e-12,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        initializer_range: float = 0.02,
        bos_token_id: int = 0,
        pad_token_id: int = 1,
        eos_token_id: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            bos_token_id=bos_token_id, pad_token_id=pad_token_id, eos_token_id=eos_token_id, **kwargs
        )
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = intermediate_size
        self.text_layers = text_layers
        self.text_intermediate_size = text_intermediate_size
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.image_layers = image_layers
        self.image_intermediate_size = image_intermediate_size
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_channels = num_channels
        self.modality_type_vocab_size = modality_type_vocab_size
        self.layer_norm_eps = layer_norm_eps
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.initializer_range = initializer_range

    @property
    def text_positions(self) -> int:
        """Maximum text length in tokens: RoBERTa's positions start after the padding id."""
        return int(self.max_position_embeddings - self.pad_token_id - 1)

    def text_encoder(self) -> RobertaConfig:
        """RoBERTa's configuration."""
        return RobertaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.text_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.text_intermediate_size,
            hidden_dropout_prob=self.encoder_dropout,
            attention_probs_dropout_prob=self.encoder_dropout,
            max_position_embeddings=self.max_position_embeddings,
            type_vocab_size=1,
            layer_norm_eps=ENCODER_LAYER_NORM_EPS,
            initializer_range=self.initializer_range,
            bos_token_id=self.bos_token_id,
            pad_token_id=self.pad_token_id,
            eos_token_id=self.eos_token_id,
        )

    def image_encoder(self) -> CLIPVisionConfig:
        """The configuration of CLIP's image encoder."""
        return CLIPVisionConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.image_intermediate_size,
            num_hidden_layers=self.image_layers,
            num_attention_heads=self.num_attention_heads,
            num_channels=self.num_channels,
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_act="quick_gelu",
            layer_norm_eps=ENCODER_LAYER_NORM_EPS,
        )

    def fusion(self) -> BridgeTowerConfig:
        """The configuration of the fusion layers and poolers, which are BridgeTower's."""
        config = BridgeTowerConfig(
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            layer_norm_eps=self.layer_norm_eps,
            hidden_act=self.hidden_act,
        )
        # The only implementation of its modules; `MeterBlock` computes attention itself.
        config._attn_implementation = "eager"
        config.intermediate_size = self.intermediate_size
        config.hidden_dropout_prob = self.hidden_dropout_prob
        config.attention_probs_dropout_prob = self.attention_probs_dropout_prob
        return config
