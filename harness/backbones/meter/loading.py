"""Load METER's weights from original checkpoints, or from folders with this package's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.backbones.base import BackboneOptions
from harness.backbones.checkpoints import (
    Checkpoint,
    check_amount,
    check_sizes,
    check_vocabulary,
    converted,
    describing,
    find_checkpoint,
    fixed_generator,
    load_strictly,
    read_settings,
    read_tensors,
    renamed,
)
from harness.backbones.meter.assembling import assemble_encoders, assembled_folder
from harness.backbones.meter.config import MeterConfig
from harness.backbones.meter.model import MeterBackbone
from harness.backbones.meter.processor import MeterProcessor, vocabulary_files
from harness.errors import UserError

MINI_FOLDER = Path(__file__).parent.parent / "weights" / "meter-mini"


IMAGE_SIZE = 384
"""Pixels; the size at which DAS fine-tunes METER (NLVR2: 288), independent of the size in pre-training."""


TEXT_LENGTH = 50
"""Maximum text length in tokens, as published (retrieval: 40)."""


HEADS = ("vqa_classifier", "nlvr2_classifier", "snli_classifier", "itm_score", "rank_output", "mlm_score")
"""Heads of the original model, which are kept apart from the encoder."""


UNUSED = {
    r"^text_transformer\.pooler\.": "RoBERTa's pooler: METER pools after the fusion layers",
    r"^text_transformer\.embeddings\.position_ids$": "a buffer of 0, 1, 2, …",
    r"^vit_model\.positional_embedding$": "positions of CLIP's text encoder, which METER does not run",
    r"^vit_model\.ln_final\.": "final norm of CLIP's text encoder, which METER does not run",
}
"""Keys of original checkpoints that the forward pass never reads, with the reason."""


CLIP_TEXT_POSITIONS, CLIP_TEXT_WIDTH = 77, 512
"""Of CLIP's text encoder, whose positions and final norm are among the unused keys."""


POSITIONS = "image_encoder.embeddings.position_embedding.weight"


_HUB_FILES = ("*.json", "*.txt", "*.safetensors", "pytorch_model.bin", "*.ckpt")


def load_meter(options: BackboneOptions) -> MeterBackbone:
    """METER from `options.weights`: an original `.ckpt`, a folder, a hub id, or `random`; or from its encoders.

    Raises:
        UserError: no weights are given, or they cannot be read, belong to another model, or lack a key.
    """
    if assembled := assemble_encoders(options) or assembled_folder(options):
        return assembled
    if options.weights is None:
        raise UserError(
            "meter: there are no default weights. Pass the authors' file with --weights, such as "
            "meter_clip16_288_roberta_pretrain.ckpt from github.com/zdou0830/METER, use --weights random, or "
            "assemble it from encoders (docs/encoders.md)."
        )
    if options.weights == "random":
        with fixed_generator():
            return build_meter(Checkpoint(MeterConfig(), {}, {}, None), options, "meter")
    return build_meter(read_checkpoint(options.weights), options, "meter")


def load_meter_mini(options: BackboneOptions) -> MeterBackbone:
    """The embedded small METER (12 fusion layers, width 128); with `weights="random"` it is untrained.

    Raises:
        UserError: the folder has no such weights.
    """
    options.refuse_encoders("meter-mini")
    folder = MINI_FOLDER if options.weights in (None, "random") else Path(str(options.weights))
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no config.json in this folder; create the weights with `harness pretrain meter-mini`."
        )
    if options.weights != "random" and not (folder / "model.safetensors").is_file():
        raise UserError(
            f"{folder}: no model.safetensors in this folder; create the weights with `harness pretrain meter-mini` "
            "and pass their folder with --weights."
        )
    config = _read_config(folder)
    options = replace(options, image_size=options.image_size or config.image_size)
    if options.weights == "random":
        with fixed_generator():
            backbone = build_meter(Checkpoint(config, {}, {}, folder), options, "meter-mini")
    else:
        backbone = build_meter(_read_folder(folder), options, "meter-mini")
    backbone.base_learning_rate = 2e-4
    backbone.head_learning_rate_scale = 50.0
    return backbone


def build_meter(checkpoint: Checkpoint, options: BackboneOptions, name: str) -> MeterBackbone:
    """Build the backbone of a checkpoint, with its position embeddings resized to the chosen image size.

    Raises:
        UserError: the options or the weights do not fit.
    """
    checkpoint.config.image_size = options.image_size or IMAGE_SIZE
    backbone = assemble(MeterBackbone, checkpoint, options, name, "METER")
    if name == "meter":
        roberta_pooler = backbone.width * (backbone.width + 1)
        backbone.unread_parameters = (
            roberta_pooler + CLIP_TEXT_POSITIONS * CLIP_TEXT_WIDTH + 2 * CLIP_TEXT_WIDTH
        )
    return backbone


BackboneT = TypeVar("BackboneT", bound=MeterBackbone)


def assemble(
    kind: type[BackboneT], checkpoint: Checkpoint, options: BackboneOptions, name: str, architecture: str
) -> BackboneT:
    """A backbone of two streams from a checkpoint whose configuration has the image size that is wanted.

    architecture: for messages.

    Raises:
        UserError: the options or the weights do not fit.
    """
    config: MeterConfig = checkpoint.config
    if options.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = options.dropout
        config.encoder_dropout = options.dropout
    length = options.text_length or min(TEXT_LENGTH, config.text_positions)
    if length > config.text_positions:
        raise UserError(f"{name}: text length {length} exceeds its {config.text_positions} text positions.")
    vocabulary = Path(options.tokenizer).expanduser() if options.tokenizer else checkpoint.vocabulary
    if vocabulary is not None:
        vocabulary_files(vocabulary)
    processor = MeterProcessor(vocabulary, config.image_size, config.patch_size, length)
    if vocabulary is not None:
        check_vocabulary(processor.tokenizer.get_vocab_size(), config.vocab_size, vocabulary)
    if checkpoint.state:
        check_amount(config, checkpoint.state, name)
    with describing(name, architecture):
        backbone = kind(config, processor, name=name)
    if checkpoint.state:
        grid = config.image_size // config.patch_size
        with describing(f"{name}: {POSITIONS}", architecture):
            positions = resize_positions(checkpoint.state[POSITIONS], grid)
        load_strictly(backbone.model, {**checkpoint.state, POSITIONS: positions}, name, architecture)
    backbone.pretrained_heads = checkpoint.heads
    backbone.requires_grad_(True)
    return backbone.eval()


def resize_positions(table: Tensor, grid: int) -> Tensor:
    """Resize the positions of the class token and a square of patches `(1 + n², D)` to `(1 + grid², D)`.

    The resize is bicubic, as METER's own at loading (`adapt_position_encoding`).
    """
    side = int((table.shape[0] - 1) ** 0.5)
    if side == grid:
        return table
    square = table[1:].float().T.reshape(1, -1, side, side)
    resized = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:1].float(), resized.flatten(2)[0].T])


def read_checkpoint(source: str) -> Checkpoint:
    """Read a file with the original's names, a folder with such a file or with our names, or a hub id.

    Raises:
        UserError: it cannot be read, or is not a METER checkpoint.
    """
    path = find_checkpoint(source, _HUB_FILES)
    return _read_original(path, read_tensors(path), None) if path.is_file() else _read_folder(path)


def _read_config(folder: Path) -> MeterConfig:
    where = str(folder / "config.json")
    with describing(where, "METER"):
        config = MeterConfig.from_dict(read_settings(folder, "meter"))
    check_sizes(config, where)
    return config


def _read_folder(folder: Path) -> Checkpoint:
    weights = _find_weights(folder)
    tensors = read_tensors(weights)
    has_vocabulary = any((folder / name).is_file() for name in ("tokenizer.json", "merges.txt"))
    vocabulary = folder if has_vocabulary else None
    if weights.suffix == ".ckpt" or any(key.startswith("cross_modal_") for key in tensors):
        return _read_original(weights, tensors, vocabulary)
    config = _read_config(folder)
    if POSITIONS not in tensors:
        raise UserError(f"{weights}: not METER's weights: key {POSITIONS} is missing.")
    heads = {key: tensor for key, tensor in tensors.items() if key.split(".")[0] in HEADS}
    return Checkpoint(config, {k: v for k, v in tensors.items() if k not in heads}, heads, vocabulary)


def _find_weights(folder: Path) -> Path:
    named = [folder / "model.safetensors", folder / "pytorch_model.bin"]
    found = [path for path in (*named, *sorted(folder.glob("*.ckpt"))) if path.is_file()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(
            f"{folder}: holds {len(found)} weights files ({names}), expected one: model.safetensors, "
            "pytorch_model.bin or a .ckpt."
        )
    return found[0]


def _read_original(path: Path, tensors: dict[str, Tensor], vocabulary: Path | None) -> Checkpoint:
    with describing(str(path), "METER"):
        try:
            config = config_from_original(tensors)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        check_sizes(config, str(path))
        return replace(convert_original(tensors, config), vocabulary=vocabulary)


def clip_names(visual: str) -> tuple[tuple[str, str], ...]:
    """Patterns that rename the layers and norms of OpenAI's CLIP. visual: pattern of its image encoder's name."""
    block = rf"^{visual}\.transformer\.resblocks\.(\d+)\."
    layer = r"image_encoder.encoder.layers.\1."
    return (
        (rf"^{visual}\.ln_pre\.", "image_encoder.pre_layrnorm."),
        (rf"^{visual}\.ln_post\.", "image_encoder.post_layernorm."),
        (rf"{block}ln_(\d)\.", rf"{layer}layer_norm\2."),
        (rf"{block}attn\.", rf"{layer}self_attn."),
        (rf"{block}mlp\.c_fc\.", rf"{layer}mlp.fc1."),
        (rf"{block}mlp\.c_proj\.", rf"{layer}mlp.fc2."),
    )


_TO_OURS = (
    (r"^text_transformer\.", "text_encoder."),
    (r"^vit_model\.visual\.class_embedding$", "image_encoder.embeddings.class_embedding"),
    (r"^vit_model\.visual\.positional_embedding$", POSITIONS),
    (r"^vit_model\.visual\.conv1\.", "image_encoder.embeddings.patch_embedding."),
    *clip_names(r"vit_model\.visual"),
    (r"^cross_modal_(text|image)_transform\.", r"\1_projection."),
    (r"^cross_modal_(text|image)_pooler\.", r"\1_pooler."),
)


def convert_original(tensors: Mapping[str, Tensor], config: MeterConfig) -> Checkpoint:
    """Rename an original checkpoint's tensors to our names and split CLIP's fused `in_proj`.

    Heads and unused keys are returned separately. An unknown key keeps its name, and `load_strictly` refuses it.
    """

    def convert(key: str, tensor: Tensor) -> dict[str, Tensor]:
        layer = fusion_layer_name(key, config.num_hidden_layers)
        return {layer: tensor} if layer else split_in_proj(renamed(key, _TO_OURS), tensor)

    return converted(config, tensors, convert, HEADS, UNUSED)


def fusion_layer_name(key: str, depths: int) -> str | None:
    """Our name of a tensor in a fusion layer, text layers first; None if it is in none."""
    layer = re.match(r"^cross_modal_(text|image)_layers\.(\d+)\.", key)
    if layer is None:
        return None
    return f"layers.{int(layer[2]) + (depths if layer[1] == 'image' else 0)}.{key[layer.end() :]}"


def split_in_proj(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor under its name; three if it is query, key and value of CLIP's attention in one."""
    fused = re.match(r"^(.*)\.in_proj_(weight|bias)$", name)
    if not fused:
        return {name: tensor}
    parts = zip("qkv", tensor.chunk(3), strict=True)
    return {f"{fused[1]}.{role}_proj.{fused[2]}": part for role, part in parts}


def config_from_original(tensors: Mapping[str, Tensor], num_heads: int | None = None) -> MeterConfig:
    """The configuration that follows from the shapes of an original checkpoint.

    num_heads: attention heads, which no shape shows; None: as many as have 64 channels each.

    Raises:
        UserError: a key of METER with CLIP's ViT and RoBERTa is missing, or widths differ.
    """
    try:
        width, channels, patch, _ = tensors["vit_model.visual.conv1.weight"].shape
        positions = tensors["vit_model.visual.positional_embedding"].shape[0]
        vocabulary, text_width = tensors["text_transformer.embeddings.word_embeddings.weight"].shape
        text_positions = tensors["text_transformer.embeddings.position_embeddings.weight"].shape[0]
        text_mlp = tensors["text_transformer.encoder.layer.0.intermediate.dense.weight"].shape[0]
        image_mlp = tensors["vit_model.visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
        fusion_mlp, fusion_width = tensors["cross_modal_text_layers.0.intermediate.dense.weight"].shape
        types = tensors["token_type_embeddings.weight"].shape[0]
    except KeyError as error:
        raise UserError(
            f"not an original METER checkpoint with CLIP's ViT and RoBERTa: key {error.args[0]} is missing."
        ) from error
    if len({width, text_width, fusion_width}) != 1:
        raise UserError(
            f"METER whose encoders ({text_width} text, {width} image) differ in width from its fusion layers "
            f"({fusion_width}) is not supported."
        )
    return MeterConfig(
        hidden_size=width,
        num_attention_heads=num_heads or width // 64,
        num_hidden_layers=_depth(tensors, "cross_modal_text_layers."),
        intermediate_size=fusion_mlp,
        text_layers=_depth(tensors, "text_transformer.encoder.layer."),
        text_intermediate_size=text_mlp,
        vocab_size=vocabulary,
        max_position_embeddings=text_positions,
        image_layers=_depth(tensors, "vit_model.visual.transformer.resblocks."),
        image_intermediate_size=image_mlp,
        image_size=int((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        num_channels=channels,
        modality_type_vocab_size=types,
    )


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Number of layers under `prefix`."""
    return 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in tensors if key.startswith(prefix))
