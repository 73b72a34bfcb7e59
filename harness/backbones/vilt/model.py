"""ViLT (Kim et al., ICML 2021): one stream, text and image patches through the same blocks.

The modules and their names are Hugging Face's, so that its checkpoints and the `adapters` library can be used. The
forward pass is ours: one matrix product embeds the patches of the whole batch, images of different shapes are packed
without padding columns, attention is fused, and evaluation uses no random numbers (`ViltModel` orders the patches by
`torch.multinomial` even then).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViltConfig, ViltModel

from harness.backbones import kernels
from harness.backbones.base import Backbone, HuggingFaceForm, Processor
from harness.backbones.block import BlockInput, Tokens, run_block
from harness.backbones.checkpoints import digest_model
from harness.backbones.inputs import Inputs, Stream, Streams
from harness.backbones.masks import additive_mask
from harness.backbones.pairs import distinct_rows
from harness.backbones.vilt.block import BLOCK_LAYER_NORM_EPS, ViltBlock
from harness.errors import UserError

TEXT_LAYER_NORM_EPS = 1e-12


HUGGING_FACE_PROJECTIONS = {
    "attention.query": "attention.attention.query",
    "attention.key": "attention.attention.key",
    "attention.value": "attention.attention.value",
    "attention.output": "attention.output.dense",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}
"""A block's projections by role in Hugging Face's `ViltLayer`."""


HUGGING_FACE_LOADING = f"""\
model = ViltModel.from_pretrained(BASE, layer_norm_eps=1e-6)
model.embeddings.text_embeddings.LayerNorm.eps = {TEXT_LAYER_NORM_EPS}
"""


HUGGING_FACE_LOADING_COMMON = """\
types = common["embeddings.token_type_embeddings.weight"]
model.embeddings.token_type_embeddings = torch.nn.Embedding.from_pretrained(types)
model.load_state_dict(common, strict=False)
"""


class ViltBackbone(Backbone):
    """ViLT as a backbone of twelve (or fewer) joint blocks."""

    stream_names = ("joint",)

    def __init__(
        self,
        config: ViltConfig,
        processor: Processor,
        name: str = "vilt",
        base_learning_rate: float = 1e-4,
        head_learning_rate_scale: float = 10.0,
    ) -> None:
        super().__init__()
        config.layer_norm_eps = BLOCK_LAYER_NORM_EPS
        depth, config.num_hidden_layers = config.num_hidden_layers, 0
        self.model = ViltModel(config)
        config.num_hidden_layers = depth
        self.model.encoder.layer = nn.ModuleList(ViltBlock(config, i) for i in range(depth))
        self.model.embeddings.text_embeddings.LayerNorm.eps = TEXT_LAYER_NORM_EPS
        self.config = config
        self.processor = processor
        self.name = name
        self.width = self.feature_dim = config.hidden_size
        self.initializer_range = config.initializer_range
        self.base_learning_rate = base_learning_rate
        self.head_learning_rate_scale = head_learning_rate_scale
        self.prompt: nn.Module | None = None
        self.pretrained_heads: Mapping[str, Tensor] = {}
        self._block_names = tuple(block.name for block in self.model.encoder.layer)
        self._digest: str | None = None
        self._interpolations: tuple[tuple[object, ...], dict[tuple[int, int], Tensor]] = ((), {})

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """The joint blocks, in order."""
        return self.model.encoder.layer  # type: ignore[no-any-return]

    def encode(self, inputs: Inputs) -> Streams:
        """Text tokens, then the class token of the image and its patches: `(B, L + 1 + P, D)`."""
        text = self._embed_text(inputs.input_ids)
        image, patch_mask = self._embed_image(inputs)
        mask = _join_masks(inputs.text_mask, patch_mask, text, image)
        return {"joint": Stream(torch.cat([text, image], dim=1), mask, text_length=text.shape[1])}

    def forward_pairs(self, inputs: Inputs) -> Tensor:
        """As `forward` on `inputs.paired()`. In evaluation each text and image is embedded once, and the last block
        computes only the pooled token, as in training.
        """
        if self.training or inputs.texts_per_image == 1:
            return super().forward_pairs(inputs)
        distinct, rows = distinct_rows(inputs)
        text = rows.of("text", self._embed_text(distinct.input_ids))
        embedded, patch_mask = self._embed_image(distinct)
        image = rows.of("image", embedded)
        patch_mask = None if patch_mask is None else rows.of("image", patch_mask)
        mask = _join_masks(inputs.text_mask, patch_mask, text, image)
        streams = {"joint": Stream(torch.cat([text, image], dim=1), mask, text_length=text.shape[1])}
        return (
            self.pool(self.run_blocks(streams, queries=1)) if self.pooled_token_only else self.fuse(streams)
        )

    def _embed_text(self, input_ids: Tensor) -> Tensor:
        """Text tokens with positions and token type: `(B, L, D)`."""
        embeddings = self.model.embeddings
        length = input_ids.shape[1]
        if length > self.config.max_position_embeddings:
            raise UserError(
                f"{self.name}: a text of {length} tokens is longer than the {self.config.max_position_embeddings}"
                " positions of its text embedding; lower the text length."
            )
        text: Tensor = embeddings.text_embeddings(input_ids=input_ids)
        return text + embeddings.token_type_embeddings.weight[0]

    def _embed_image(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        """Class token and patches with positions and token type `(B, 1 + P, D)`; the mask of the patches or None."""
        embeddings = self.model.embeddings
        pixels = self.framed(inputs.pixels, inputs.image_sizes)
        patches, patch_mask = self._embed_patches(pixels, inputs.image_sizes)
        first = embeddings.cls_token + embeddings.position_embeddings[:, :1]
        image = embeddings.dropout(torch.cat([first.expand(len(patches), -1, -1), patches], dim=1))
        return image + embeddings.token_type_embeddings.weight[inputs.image_token_type], patch_mask

    def _embed_patches(self, pixels: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Patches with positions `(B, P, D)`, padding dropped, and their mask `(B, P)` or None."""
        projection = self.model.embeddings.patch_embeddings.projection
        side = projection.kernel_size[0]
        height, width = pixels.shape[2:]
        if height % side or width % side:
            raise UserError(
                f"{self.name}: image size {height}x{width} is not a multiple of the patch size {side}."
            )
        rows, columns = height // side, width // side
        embedded = kernels.product(tiles_of(pixels, side), projection.weight.flatten(1), projection.bias)
        if sizes is None:
            return embedded + self._positions(rows, columns), None
        # The sizes are on the CPU, so that this does not wait for a GPU.
        counts = [(int(h) // side, int(w) // side) for h, w in sizes.tolist()]
        most = max(h * w for h, w in counts)
        heights, widths = torch.tensor(counts).to(embedded.device, non_blocking=True)[:, :, None].unbind(1)
        place = torch.arange(most, device=embedded.device)
        mask = place < heights * widths
        index = (place // widths * columns + place % widths).masked_fill(~mask, 0)
        packed = embedded.gather(1, index[..., None].expand(-1, -1, embedded.shape[-1]))
        tables = {size: self._positions(*size) for size in set(counts)}
        positions = torch.stack(
            [F.pad(tables[size], (0, 0, 0, most - tables[size].shape[0])) for size in counts]
        )
        return packed + positions, None if all(h * w == most for h, w in counts) else mask

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Position embeddings `(rows·columns, D)`, bilinear from the pretrained grid.

        Those of frozen embeddings are kept: on a GPU they take longer to compute than a block with 16 images.
        """
        embeddings = self.model.embeddings.position_embeddings
        side = int((embeddings.shape[1] - 1) ** 0.5)
        if (rows, columns) == (side, side):
            return embeddings[0, 1:]
        if embeddings.requires_grad or embeddings.is_inference():
            return _interpolated(embeddings[0, 1:], side, rows, columns)
        state = (embeddings.data_ptr(), embeddings._version, embeddings.dtype, embeddings.device)
        if self._interpolations[0] != state:
            self._interpolations = (state, {})
        known = self._interpolations[1]
        if (rows, columns) in known:
            return known[rows, columns]
        with torch.inference_mode(False), torch.no_grad():
            positions = _interpolated(embeddings[0, 1:], side, rows, columns)
        # While a CUDA graph is recorded nothing has been computed yet.
        if not embeddings.is_cuda or not torch.cuda.is_current_stream_capturing():
            known[rows, columns] = positions
        return positions

    def fuse(self, streams: Streams) -> Tensor:
        """The pooled text class token `(B, D)` after all blocks."""
        queries = 1 if self.training and self.pooled_token_only else None
        return self.pool(self.run_blocks(streams, queries))

    def enter(self, streams: Streams) -> dict[str, Tokens]:
        """The input of the first block, with prompts if there are any."""
        if self.prompt is not None:
            streams = self.prompt(streams)
        stream = streams["joint"]
        return {"joint": Tokens(stream.hidden, additive_mask(stream.mask, stream.hidden), stream.text_length)}

    def run_blocks(self, streams: Streams, queries: int | None = None) -> dict[str, Tokens]:
        """The tokens after the last block, before the final norm; `queries`: only so many leading ones."""
        tokens = self.enter(streams)["joint"]
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            tokens = run_block(block, BlockInput(tokens, queries=queries if index == last else None)).tokens
        return {"joint": tokens}

    def pool(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """Final norm and pooler of the first token: `(B, D)`."""
        first = self.model.layernorm(tokens["joint"].hidden[:, :1])
        return self.model.pooler(first)  # type: ignore[no-any-return]

    def common_parameters(self) -> Iterator[nn.Parameter]:
        """The pooler and the modality-type embeddings; the text embedding's token types if `tunes_text_types`."""
        yield from self.model.pooler.parameters()
        yield from self.model.embeddings.token_type_embeddings.parameters()
        if self.tunes_text_types:
            yield from self.model.embeddings.text_embeddings.token_type_embeddings.parameters()

    def components(self) -> dict[str, list[nn.Module]]:
        """Embeddings, fusion (blocks and final norm), pooler."""
        return {
            "embeddings": [self.model.embeddings],
            "fusion": [self.model.encoder, self.model.layernorm],
            "pooler": [self.model.pooler],
        }

    def example_inputs(
        self, batch_size: int, text_length: int, image_size: tuple[int, int], generator: torch.Generator
    ) -> Inputs:
        """Random token ids and pixels, nothing padded."""
        ids = torch.randint(0, self.config.vocab_size, (batch_size, text_length), generator=generator)
        pixels = torch.randn(batch_size, self.config.num_channels, *image_size, generator=generator)
        return Inputs(ids, None, pixels)

    def widen_token_types(self, count: int) -> None:
        """New rows are copies of row 1, as the original does for NLVR2's second image."""
        old = self.model.embeddings.token_type_embeddings
        if old.num_embeddings >= count:
            return
        rows = [old.weight.data, *[old.weight.data[1:2]] * (count - old.num_embeddings)]
        new = nn.Embedding.from_pretrained(torch.cat(rows), freeze=not old.weight.requires_grad)
        self.model.embeddings.token_type_embeddings = new

    def hugging_face_form(self) -> HuggingFaceForm:
        """`ViltModel` with the backbone's weights."""
        model = ViltModel(self.config)
        model.embeddings.text_embeddings.LayerNorm.eps = TEXT_LAYER_NORM_EPS
        model.load_state_dict(self.model.state_dict())
        return HuggingFaceForm(
            model.eval(),
            layers="encoder.layer",
            projections=HUGGING_FACE_PROJECTIONS,
            imports="from transformers import ViltModel",
            loading=HUGGING_FACE_LOADING,
            loading_common=HUGGING_FACE_LOADING_COMMON,
        )

    def digest(self) -> str:
        """SHA-256 of weights and configuration as loaded; computed at the first call."""
        if self._digest is None:
            self._digest = digest_model(self.model)
        return self._digest


def tiles_of(pixels: Tensor, side: int) -> Tensor:
    """Patches of images `(B, C, H, W)` with their pixels in rows: `(B, H/side · W/side, C · side²)`."""
    bytes_across = side * pixels.element_size()
    if not pixels.is_cuda or pixels.requires_grad or bytes_across % 8:
        return _tiles(pixels, side, side)
    # Eight bytes at a time, because the copy has a thread for each element.
    return _tiles(pixels.contiguous().view(torch.int64), side, bytes_across // 8).view(pixels.dtype)


def _tiles(elements: Tensor, side: int, across: int) -> Tensor:
    batch, channels, height, width = elements.shape
    rows, columns = height // side, width // across
    tiles = elements.view(batch, channels, rows, side, columns, across).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(batch, rows * columns, -1)


def _interpolated(table: Tensor, side: int, rows: int, columns: int) -> Tensor:
    grid = table.T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, size=(rows, columns), mode="bilinear", align_corners=True)
    return grid.flatten(2)[0].T.contiguous()


def _join_masks(
    text_mask: Tensor | None, patch_mask: Tensor | None, text: Tensor, image: Tensor
) -> Tensor | None:
    """The mask of text and image tokens, `(B, L + 1 + P)`; None if none is padding."""
    if text_mask is None and patch_mask is None:
        return None
    if text_mask is None:
        text_mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    image_mask = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)
    if patch_mask is not None:
        image_mask[:, 1:] = patch_mask
    return torch.cat([text_mask, image_mask], dim=1)
