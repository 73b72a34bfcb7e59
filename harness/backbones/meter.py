"""METER (Dou et al., CVPR 2022): CLIP's ViT-B/16 and RoBERTa-base, joined by six co-attention depths.

Encoders, fusion layers and poolers are Hugging Face's modules (BridgeTower's cross layer is METER's); the
fusion layers' forward pass is ours, with fused attention and the slots that methods use. Token types are
added at the start of `fuse`: they train with every method, so that what `encode` returns depends on nothing
that a method for the fusion layers trains, and can be computed once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BridgeTowerConfig, CLIPVisionConfig, CLIPVisionModel, RobertaConfig, RobertaModel
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.bridgetower.modeling_bridgetower import BridgeTowerBertCrossLayer, BridgeTowerPooler

from harness.backbones.base import Backbone, Block, Inputs, Processor, Stream, Streams, run_block
from harness.backbones.digest import digest_state
from harness.backbones.masks import additive_mask
from harness.backbones.meter_pairs import forward_pairs
from harness.errors import UserError

STREAMS = ("text", "image")
ENCODER_LAYER_NORM_EPS = 1e-5
"""Of RoBERTa and CLIP."""


class MeterConfig(PretrainedConfig):
    """METER's sizes; the defaults are the published ones (CLIP-ViT-B/16 and RoBERTa-base).

    hidden_size: width of both encoders and of the fusion layers.
    num_hidden_layers: co-attention depths, each a text and an image layer.
    intermediate_size: of the fusion layers; text_ and image_intermediate_size: of the encoders.
    image_layers: 11, since METER leaves out the last of CLIP's 12.
    image_size: side of the square image in pixels, for which there are position embeddings.
    hidden_dropout_prob, attention_probs_dropout_prob: of the fusion layers, 0.1 as published. The encoders have
        none, so that their output is a function of the input alone.
    """

    model_type = "meter"

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
        """Most tokens of a text: RoBERTa counts positions from the padding id on, which is not used itself."""
        return int(self.max_position_embeddings - self.pad_token_id - 1)

    def text_encoder(self) -> RobertaConfig:
        """RoBERTa's configuration."""
        return RobertaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.text_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.text_intermediate_size,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=self.max_position_embeddings,
            type_vocab_size=1,
            layer_norm_eps=ENCODER_LAYER_NORM_EPS,
            initializer_range=self.initializer_range,
            bos_token_id=self.bos_token_id,
            pad_token_id=self.pad_token_id,
            eos_token_id=self.eos_token_id,
        )

    def image_encoder(self) -> CLIPVisionConfig:
        """The configuration of CLIP's image side."""
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
        config._attn_implementation = "eager"  # whose modules these are; `MeterBlock` attends by itself
        config.intermediate_size = self.intermediate_size
        config.hidden_dropout_prob = self.hidden_dropout_prob
        config.attention_probs_dropout_prob = self.attention_probs_dropout_prob
        return config


class MeterBlock(Block):
    """A fusion layer of one stream: self-attention, attention to the other stream, feed-forward, all post-norm.

    Attribute names are those of Hugging Face's `BridgeTowerBertCrossLayer`, whose modules it takes over.
    """

    sublayers: ClassVar[tuple[str, ...]] = ("self_attention", "cross_attention", "mlp")
    normalizes_last: ClassVar[bool] = True

    def __init__(self, config: MeterConfig, stream: str, depth: int) -> None:
        super().__init__()
        self.name = f"{stream}.{depth}"
        self.stream = stream
        layer = BridgeTowerBertCrossLayer(config.fusion())
        self.attention = layer.attention
        self.crossattention = layer.crossattention
        self.intermediate = layer.intermediate
        self.output = layer.output
        self.sequential = nn.ModuleDict()
        self.parallel = nn.ModuleDict()
        self.behind = nn.ModuleDict()
        self.heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """`(B, T, D)` → `(B, T, D)`; `context` `(B, S, D)` are the other stream's states of the depth before.

        Raises:
            ValueError: there is no context.
        """
        return self._run(hidden, mask, context, context_mask, first_only=False)

    def first(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """`(B, T, D)` → `(B, 1, D)`: of the other tokens only keys and values are computed."""
        return self._run(hidden, mask, context, context_mask, first_only=True)

    def _run(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        context: Tensor | None,
        context_mask: Tensor | None,
        first_only: bool,
    ) -> Tensor:
        if context is None:
            raise ValueError(f"{self.name} attends to the other stream: context is missing")
        own = self.attend_to_itself(hidden, mask, first_only)
        return self.attend_across(own, self.query(own), *self.keys_and_values(context), context_mask)

    def attend_to_itself(self, hidden: Tensor, mask: Tensor | None, first_only: bool = False) -> Tensor:
        """The first sublayer, `(B, T, D)` → `(B, T, D)` or its first token: it reads its own stream only."""
        asking = hidden[:, :1] if first_only else hidden
        attended = self._attend(self.attention, asking, hidden, mask)
        return self._close("self_attention", self.attention.output, attended, asking)

    def query(self, own: Tensor) -> Tensor:
        """What the second sublayer asks, by head: `(B, T, D)` → `(B, heads, T, D / heads)`."""
        return self._by_head(self.crossattention.self.query(own))

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """What it is answered from, by head: the other stream's `(B, S, D)` → twice `(B, heads, S, D / heads)`."""
        maps = self.crossattention.self
        return self._by_head(maps.key(context)), self._by_head(maps.value(context))

    def attend_across(
        self, own: Tensor, query: Tensor, key: Tensor, value: Tensor, context_mask: Tensor | None
    ) -> Tensor:
        """The second and third sublayer on what the first returned, `own` `(B, T, D)`."""
        attended = self._mix(query, key, value, context_mask)
        hidden = self._close("cross_attention", self.crossattention.output, attended, own)
        return self._close("mlp", self.output, self.intermediate(hidden), hidden)

    def _attend(self, attention: nn.Module, hidden: Tensor, read: Tensor, mask: Tensor | None) -> Tensor:
        """Multi-head attention of `hidden` `(B, T, D)` to `read` `(B, S, D)`, without the output map."""
        maps: Any = attention.self
        query, key, value = maps.query(hidden), maps.key(read), maps.value(read)
        return self._mix(self._by_head(query), self._by_head(key), self._by_head(value), mask)

    def _by_head(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], self.heads, -1).transpose(1, 2)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return mixed.transpose(1, 2).flatten(2)

    def _close(self, sublayer: str, output: Any, inner: Tensor, residual: Tensor) -> Tensor:
        """The end of a sublayer: output map, slots, residual, norm."""
        result = output.dropout(output.dense(inner))
        if sublayer in self.sequential:
            result = self.sequential[sublayer](result)
        if sublayer in self.parallel:
            result = result + self.parallel[sublayer](residual)
        normed: Tensor = output.LayerNorm(result + residual)
        if sublayer in self.behind:
            normed = normed + self.behind[sublayer](residual)
        return normed

    def _owners(self) -> dict[str, tuple[Any, str]]:
        """Where each projection hangs: module and attribute, by role."""
        owners: dict[str, tuple[Any, str]] = {}
        for role, attention in (
            ("self_attention", self.attention),
            ("cross_attention", self.crossattention),
        ):
            owners |= {f"{role}.{name}": (attention.self, name) for name in ("query", "key", "value")}
            owners[f"{role}.output"] = (attention.output, "dense")
        return {**owners, "mlp.up": (self.intermediate, "dense"), "mlp.down": (self.output, "dense")}

    def projections(self) -> dict[str, nn.Linear]:
        """The ten linear maps of the block by role."""
        return {role: getattr(owner, name) for role, (owner, name) in self._owners().items()}

    def set_projection(self, role: str, module: nn.Module) -> None:
        """Replace one of the ten maps."""
        owner, name = self._owners()[role]
        setattr(owner, name, module)


class MeterModel(PreTrainedModel):
    """METER's modules; `MeterBackbone` runs them. `layers` are the text layers by depth, then the image layers."""

    config_class = MeterConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    def __init__(self, config: MeterConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.text_encoder = RobertaModel(config.text_encoder(), add_pooling_layer=False)
        self.image_encoder = CLIPVisionModel(config.image_encoder()).vision_model
        self.text_projection = nn.Linear(width, width)
        self.image_projection = nn.Linear(width, width)
        self.token_type_embeddings = nn.Embedding(config.modality_type_vocab_size, width)
        self.layers = nn.ModuleList(
            MeterBlock(config, stream, depth)
            for stream in STREAMS
            for depth in range(config.num_hidden_layers)
        )
        self.text_pooler = BridgeTowerPooler(config.fusion())
        self.image_pooler = BridgeTowerPooler(config.fusion())
        # The encoders have initialised themselves.
        for name, module in self.named_children():
            if not name.endswith("_encoder"):
                module.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        """As the original: N(0, 0.02), biases 0, norms 1 and 0."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Linear | nn.LayerNorm):
            nn.init.zeros_(module.bias)


class MeterBackbone(Backbone):
    """METER as a backbone of twelve (or fewer) fusion layers in two streams."""

    stream_names = STREAMS

    def __init__(
        self,
        config: MeterConfig,
        processor: Processor,
        name: str = "meter",
        base_learning_rate: float = 2.5e-5,
        head_learning_rate_scale: float = 10.0,
    ) -> None:
        """Random weights; the default rates are those of METER's fine-tuning on VQA (5e-6, fusion ×5, head ×50)."""
        super().__init__()
        self.model = MeterModel(config)
        self.config = config
        self.processor = processor
        self.name = name
        self.width = config.hidden_size
        self.feature_dim = 2 * config.hidden_size
        self.initializer_range = config.initializer_range
        self.base_learning_rate = base_learning_rate
        self.head_learning_rate_scale = head_learning_rate_scale
        self.prompt: nn.Module | None = None
        self.pretrained_heads: dict[str, Tensor] = {}
        self._block_names = tuple(str(block.name) for block in self.model.layers)
        self._digest: str | None = None

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """The text layers by depth, then the image layers by depth."""
        return self.model.layers  # type: ignore[no-any-return]

    def encode(self, inputs: Inputs) -> Streams:
        """Both encoders and their projections: text `(B, L, D)`, image `(B, 1 + patches, D)`.

        Raises:
            UserError: a text is too long, or the images have another size than the position embeddings.
        """
        text = self.encode_text(inputs.input_ids, inputs.text_mask)
        return self.join(text, self.encode_image(inputs.pixels, inputs.image_sizes), inputs)

    def join(self, text: Tensor, image: Tensor, inputs: Inputs) -> Streams:
        """Both streams, token types still to be added."""
        return {
            "text": Stream(text, inputs.text_mask, 0),
            "image": Stream(image, None, inputs.image_token_type),
        }

    def encoders(self) -> dict[str, list[nn.Module]]:
        """Each encoder with its projection."""
        components = self.components()
        return {stream: components[f"{stream} encoder"] for stream in STREAMS}

    def encode_text(self, input_ids: Tensor, text_mask: Tensor | None) -> Tensor:
        """RoBERTa and the projection: `(B, L)` → `(B, L, D)`."""
        length = input_ids.shape[1]
        if length > self.config.text_positions:
            raise UserError(
                f"{self.name}: a text of {length} tokens is longer than the {self.config.text_positions} "
                "positions of its text encoder; lower the text length."
            )
        encoder = self.model.text_encoder
        hidden = encoder.embeddings(input_ids)
        mask = additive_mask(text_mask, hidden)
        return self.model.text_projection(encoder.encoder(hidden, attention_mask=mask)[0])  # type: ignore[no-any-return]

    def encode_image(self, pixels: Tensor, image_sizes: Tensor | None) -> Tensor:
        """CLIP and the projection: `(B, 3, H, W)` → `(B, 1 + patches, D)`."""
        height, width = pixels.shape[-2:]
        side = self.config.image_size
        if (height, width) != (side, side) or image_sizes is not None:
            what = "padded images" if image_sizes is not None else f"images of {height}x{width} pixels"
            raise UserError(
                f"{self.name}: {what}, but its position embeddings are for whole images of {side}x{side}; "
                "set the image size when loading it (--image-size)."
            )
        encoder = self.model.image_encoder
        hidden = encoder.pre_layrnorm(encoder.embeddings(pixels))
        hidden = encoder.encoder(inputs_embeds=hidden).last_hidden_state
        return self.model.image_projection(encoder.post_layernorm(hidden))  # type: ignore[no-any-return]

    def fuse(self, streams: Streams) -> Tensor:
        """The pooled first tokens of both streams after all blocks, text first: `(B, 2 D)`."""
        return self.pool(self.run_blocks(streams, first_only=self.training and self.shortens))

    def forward_pairs(self, inputs: Inputs) -> Tensor:
        """As `forward` on `inputs.paired()`; both encoders run once for each text and image."""
        if inputs.texts_per_image == 1:
            return self(inputs)  # type: ignore[no-any-return]
        return forward_pairs(self, inputs)

    def run_blocks(self, streams: Streams, first_only: bool = False) -> Streams:
        """Hidden states after the last depth; both layers of a depth read the states before it."""
        return self.run_depths(self.enter(streams), first_only=first_only)

    def enter(self, streams: Streams) -> Streams:
        """What the first depth reads: with prompts, if there are any, and token types."""
        if self.prompt is not None:
            streams = self.prompt(streams)
        return {name: self._add_token_type(streams[name]) for name in STREAMS}

    def run_depths(self, streams: Streams, first: int = 0, first_only: bool = False) -> Streams:
        """Hidden states after the last depth, of states that have come as far as depth `first`.

        first_only: of each stream's first token only.
        """
        text, image = (streams[name] for name in STREAMS)
        masks = [additive_mask(stream.mask, stream.hidden) for stream in (text, image)]
        states = text.hidden, image.hidden
        depths = len(self.blocks) // 2
        for depth in range(first, depths):
            text_block, image_block = self.blocks[depth], self.blocks[depths + depth]
            short = first_only and depth == depths - 1
            states = (
                run_block(text_block, states[0], masks[0], states[1], masks[1], first_only=short),
                run_block(image_block, states[1], masks[1], states[0], masks[0], first_only=short),
            )
        return {"text": Stream(states[0], text.mask), "image": Stream(states[1], image.mask)}

    def _add_token_type(self, stream: Stream) -> Stream:
        if stream.token_type is None:
            return stream
        row = self.model.token_type_embeddings.weight[stream.token_type]
        return Stream(stream.hidden + row, stream.mask)

    def pool(self, streams: Streams) -> Tensor:
        """Poolers of both streams' first tokens: `(B, 2 D)`."""
        pooled = (
            self.model.text_pooler(streams["text"].hidden),
            self.model.image_pooler(streams["image"].hidden),
        )
        return torch.cat(pooled, dim=-1)

    def common_parameters(self) -> Iterator[nn.Parameter]:
        """The poolers and the modality-type embeddings."""
        for module in (self.model.text_pooler, self.model.image_pooler, self.model.token_type_embeddings):
            yield from module.parameters()

    def classification_token(self) -> Tensor:
        """RoBERTa's embedding of `<s>`, which DAS's trained token starts as: `(D,)`."""
        table = self.model.text_encoder.embeddings.word_embeddings.weight
        return table[self.config.bos_token_id].detach().clone()  # type: ignore[no-any-return]

    def components(self) -> dict[str, list[nn.Module]]:
        """Encoders with their projections, fusion (blocks and token types), poolers."""
        model = self.model
        return {
            "text encoder": [model.text_encoder, model.text_projection],
            "image encoder": [model.image_encoder, model.image_projection],
            "fusion": [model.layers, model.token_type_embeddings],
            "pooler": [model.text_pooler, model.image_pooler],
        }

    def example_inputs(
        self, batch_size: int, text_length: int, image_size: tuple[int, int], generator: torch.Generator
    ) -> Inputs:
        """Random token ids (no special ones) and pixels, nothing padded."""
        lowest = self.config.eos_token_id + 1
        ids = torch.randint(lowest, self.config.vocab_size, (batch_size, text_length), generator=generator)
        pixels = torch.randn(batch_size, self.config.num_channels, *image_size, generator=generator)
        return Inputs(ids, None, pixels)

    def widen_token_types(self, count: int) -> None:
        """New rows are copies of row 1, as the original does for NLVR2's second image."""
        old = self.model.token_type_embeddings
        if old.num_embeddings >= count:
            return
        rows = [old.weight.data, *[old.weight.data[1:2]] * (count - old.num_embeddings)]
        self.model.token_type_embeddings = nn.Embedding.from_pretrained(
            torch.cat(rows), freeze=not old.weight.requires_grad
        )

    def digest(self) -> str:
        """SHA-256 of weights and configuration at loading (computed on the first call after it)."""
        if self._digest is None:
            settings = self.config.to_diff_dict()
            settings.pop("transformers_version", None)  # says who wrote it, not what it computes
            self._digest = digest_state(self.model.state_dict(), settings)
        return self._digest
