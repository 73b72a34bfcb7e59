"""METER (Dou et al., CVPR 2022): CLIP's ViT-B/16 and RoBERTa-base, joined by six co-attention depths.

Encoders, fusion layers and poolers are Hugging Face's modules (BridgeTower's cross layer is METER's); the
fusion layers' forward pass is ours, with fused attention and the slots that methods use. Token types train under
every method and are therefore added at the start of `fuse`. So the result of `encode` does not depend on anything
that a method for the fusion layers trains, and can be computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, RobertaModel
from transformers.modeling_utils import PreTrainedModel
from transformers.models.bridgetower.modeling_bridgetower import BridgeTowerPooler

from harness.backbones.base import Backbone, Processor
from harness.backbones.block import BlockInput, Tokens, run_block
from harness.backbones.checkpoints import digest_model
from harness.backbones.inputs import Inputs, Stream, Streams
from harness.backbones.masks import additive_mask
from harness.backbones.meter.block import MeterBlock
from harness.backbones.meter.config import MeterConfig
from harness.backbones.meter.pairs import first_depth
from harness.backbones.pairs import distinct_rows
from harness.errors import UserError

STREAMS = ("text", "image")


PAIRED_IMAGE_SIZE = 288
"""Side in pixels of NLVR2's images, as published."""


class MeterModel(PreTrainedModel):
    """METER's modules; `MeterBackbone` runs them. `layers` are the text layers by depth, then the image layers."""

    config_class: type[MeterConfig] = MeterConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    def __init__(self, config: MeterConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.build_encoders(config)
        self.token_type_embeddings = nn.Embedding(config.modality_type_vocab_size, width)
        self.layers = nn.ModuleList(
            MeterBlock(config, stream, depth)
            for stream in STREAMS
            for depth in range(config.num_hidden_layers)
        )
        self.text_pooler = BridgeTowerPooler(config.fusion())
        self.image_pooler = BridgeTowerPooler(config.fusion())
        # The encoders are already initialised.
        for name, module in self.named_children():
            if not name.endswith("_encoder"):
                module.apply(self._init_weights)

    def build_encoders(self, config: MeterConfig) -> None:
        """Set the encoders, and the projections of their output to the fusion's width."""
        width = config.hidden_size
        self.text_encoder = RobertaModel(config.text_encoder(), add_pooling_layer=False)
        self.image_encoder = CLIPVisionModel(config.image_encoder()).vision_model
        self.text_projection = nn.Linear(width, width)
        self.image_projection = nn.Linear(width, width)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as the original: weights N(0, 0.02), biases 0, norms 1 and 0."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Linear | nn.LayerNorm):
            nn.init.zeros_(module.bias)


class MeterBackbone(Backbone):
    """METER as a backbone of twelve (or fewer) fusion layers in two streams."""

    stream_names = STREAMS
    model_class: ClassVar[type[MeterModel]] = MeterModel
    sequential: bool = False
    """True: an image layer reads the text after the text layer of its depth (PuMer's METER). False: before that depth
    (METER)."""

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
        self.model = self.model_class(config)
        self.config = config
        self.processor = processor
        self.name = name
        self.width = config.hidden_size
        self.feature_dim = 2 * config.hidden_size
        self.initializer_range = config.initializer_range
        self.base_learning_rate = base_learning_rate
        self.head_learning_rate_scale = head_learning_rate_scale
        self.prompt: nn.Module | None = None
        self.pretrained_heads: Mapping[str, Tensor] = {}
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
        """Both streams; `fuse` adds token types."""
        return {
            "text": Stream(text, inputs.text_mask, 0),
            "image": Stream(image, None, inputs.image_token_type),
        }

    def encoders(self) -> dict[str, list[nn.Module]]:
        """Each encoder with its projection, and the frame around images."""
        components = self.components()
        frame = {"image": [] if self.frame is None else [self.frame]}
        return {stream: components[f"{stream} encoder"] + frame.get(stream, []) for stream in STREAMS}

    def encode_text(self, input_ids: Tensor, text_mask: Tensor | None) -> Tensor:
        """RoBERTa and the projection: `(B, L)` → `(B, L, D)`."""
        self.check_text(input_ids)
        encoder = self.model.text_encoder
        hidden = encoder.embeddings(input_ids)
        mask = additive_mask(text_mask, hidden)
        return self.model.text_projection(encoder.encoder(hidden, attention_mask=mask)[0])  # type: ignore[no-any-return]

    def encode_image(self, pixels: Tensor, image_sizes: Tensor | None) -> Tensor:
        """CLIP and the projection: `(B, 3, H, W)` → `(B, 1 + patches, D)`."""
        self.check_image(pixels, image_sizes)
        encoder = self.model.image_encoder
        hidden = encoder.pre_layrnorm(encoder.embeddings(self.framed(pixels, image_sizes)))
        hidden = encoder.encoder(inputs_embeds=hidden).last_hidden_state
        return self.model.image_projection(encoder.post_layernorm(hidden))  # type: ignore[no-any-return]

    def check_text(self, input_ids: Tensor) -> None:
        """Refuse texts longer than the text encoder's positions.

        Raises:
            UserError: the texts are too long.
        """
        length = input_ids.shape[1]
        if length > self.config.text_positions:
            raise UserError(
                f"{self.name}: a text of {length} tokens is longer than the {self.config.text_positions} "
                "positions of its text encoder; lower the text length."
            )

    def check_image(self, pixels: Tensor, image_sizes: Tensor | None) -> None:
        """Refuse images that do not fit the position embeddings.

        Raises:
            UserError: the images have another size, or are padded.
        """
        height, width = pixels.shape[-2:]
        side = self.config.image_size
        if (height, width) != (side, side) or image_sizes is not None:
            what = "padded images" if image_sizes is not None else f"images of {height}x{width} pixels"
            raise UserError(
                f"{self.name}: {what}, but its position embeddings are for whole images of {side}x{side}; "
                "set the image size when loading it (--image-size)."
            )

    def fuse(self, streams: Streams) -> Tensor:
        """The pooled first tokens of both streams after all blocks, text first: `(B, 2 D)`."""
        return self.pool(self.run_blocks(streams, 1 if self.training and self.pooled_token_only else None))

    def forward_pairs(self, inputs: Inputs) -> Tensor:
        """As `forward` on `inputs.paired()`; both encoders run once for each text and image."""
        if inputs.texts_per_image == 1:
            return self(inputs)  # type: ignore[no-any-return]
        distinct, rows = distinct_rows(inputs)
        streams = self.encoded(distinct)
        # A replaced `fuse` (adapters library) must process all pairs; dropout is drawn for each pair; an image layer
        # that reads updated text depends on the pair from the first depth on.
        if "fuse" in vars(self) or self.training or self.sequential:
            return self.fuse(rows.spread(streams))
        tokens = first_depth(self.blocks, self.enter(streams), rows)
        return self.pool(self.run_depths(tokens, first=1, queries=1 if self.pooled_token_only else None))

    def run_blocks(self, streams: Streams, queries: int | None = None) -> dict[str, Tokens]:
        """The tokens after the last depth; both layers of a depth read the states before it (see `sequential`)."""
        return self.run_depths(self.enter(streams), queries=queries)

    def enter(self, streams: Streams) -> dict[str, Tokens]:
        """The input of the first depth: streams with prompts, if there are any, and token types."""
        if self.prompt is not None:
            streams = self.prompt(streams)
        entered: dict[str, Tokens] = {}
        for name in STREAMS:
            stream = self._add_token_type(streams[name])
            mask = additive_mask(stream.mask, stream.hidden)
            entered[name] = Tokens(stream.hidden, mask, links=stream.links)
        return entered

    def run_depths(
        self, tokens: Mapping[str, Tokens], first: int = 0, queries: int | None = None
    ) -> dict[str, Tokens]:
        """Run the depths from `first` on; returns the tokens after the last depth.

        queries: the last depth computes only the first so many tokens of each stream; None: all.
        """
        text, image = (tokens[name] for name in STREAMS)
        depths = len(self.blocks) // 2
        for depth in range(first, depths):
            text, image = self.link("text", depth, text), self.link("image", depth, image)
            wanted = queries if depth == depths - 1 else None
            of_text = run_block(
                self.blocks[depth], BlockInput(text, image, None if self.sequential else wanted)
            )
            # A text layer may also reduce the image tokens; the image layer then continues with the reduced ones.
            image = image if of_text.context is None else of_text.context
            read = of_text.tokens if self.sequential else text
            of_image = run_block(self.blocks[depths + depth], BlockInput(image, read, wanted))
            text, image = of_text.tokens, of_image.tokens
        return {"text": text, "image": image}

    def link(self, name: str, depth: int, tokens: Tokens) -> Tokens:
        """The tokens of stream `name` that the blocks of a depth read: here those after the previous depth."""
        return tokens

    def _add_token_type(self, stream: Stream) -> Stream:
        if stream.token_type is None:
            return stream
        row = self.model.token_type_embeddings.weight[stream.token_type]
        return Stream(stream.hidden + row, stream.mask, links=tuple(states + row for states in stream.links))

    def pool(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """Poolers of both streams' first tokens: `(B, 2 D)`."""
        pooled = (
            self.model.text_pooler(tokens["text"].hidden),
            self.model.image_pooler(tokens["image"].hidden),
        )
        return torch.cat(pooled, dim=-1)

    def common_parameters(self) -> Iterator[nn.Parameter]:
        """The poolers and the modality-type embeddings."""
        for module in (self.model.text_pooler, self.model.image_pooler, self.model.token_type_embeddings):
            yield from module.parameters()

    def beside_blocks(self) -> list[nn.Module]:
        """The poolers and the projections behind the encoders, METER's "cross-modal" parameters outside the layers."""
        return [*super().beside_blocks(), self.model.text_projection, self.model.image_projection]

    def classification_token(self) -> Tensor:
        """RoBERTa's embedding of `<s>`, the initial value of DAS's trained token, `(D,)`."""
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

    def published_image_size(self, images_per_example: int) -> int | None:
        """288 pixels on NLVR2, whose examples have two images. None for the small METER, which is not published."""
        return PAIRED_IMAGE_SIZE if self.name == "meter" and images_per_example == 2 else None

    def digest(self) -> str:
        """SHA-256 of weights and configuration as loaded; computed at the first call."""
        if self._digest is None:
            self._digest = digest_model(self.model)
        return self._digest
