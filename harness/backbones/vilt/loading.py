"""Load ViLT's weights from Hugging Face folders or the hub, original checkpoints, or this package."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor
from transformers import ViltConfig

from harness.backbones.base import BackboneOptions
from harness.backbones.checkpoints import (
    Checkpoint,
    check_amount,
    check_sizes,
    check_vocabulary,
    describing,
    find_checkpoint,
    fixed_generator,
    load_strictly,
    read_settings,
    read_tensors,
    renamed,
)
from harness.backbones.vilt.model import ViltBackbone
from harness.backbones.vilt.processor import ViltProcessor
from harness.errors import UserError

MINI_FOLDER = Path(__file__).parent.parent / "weights" / "vilt-mini"


HEADS = ("vqa_classifier", "nlvr2_classifier", "itm_score", "rank_output", "mlm_score", "mpp_score")
"""Heads in original checkpoints. They are not part of the encoder and are kept separately."""


HUGGING_FACE_HEADS = ("classifier", "rank_output", "mlm_score", "itm_score")


def load_vilt(options: BackboneOptions) -> ViltBackbone:
    """ViLT-B/32 from `options.weights` (default: the hub's pretrained `dandelin/vilt-b32-mlm`).

    Raises:
        UserError: the weights cannot be read, belong to another model, or lack a key.
    """
    options.refuse_encoders("vilt")
    source = options.weights or "dandelin/vilt-b32-mlm"
    if source == "random":
        with fixed_generator():
            return _build(Checkpoint(full_size_config(), {}, {}, None), options, "vilt")
    return _build(read_checkpoint(source), options, "vilt")


def load_vilt_mini(options: BackboneOptions) -> ViltBackbone:
    """The embedded small ViLT (12 blocks, width 128); with `weights="random"` it is untrained."""
    options.refuse_encoders("vilt-mini")
    folder = MINI_FOLDER if options.weights in (None, "random") else Path(str(options.weights))
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no config.json in this folder; create the weights with `harness pretrain vilt-mini`."
        )
    if options.weights == "random":
        untrained = Checkpoint(_read_config(folder), {}, {}, folder / "vocab.txt")
        with fixed_generator():
            backbone = _build(untrained, options, "vilt-mini")
    else:
        backbone = _build(_read_hugging_face_folder(folder), options, "vilt-mini")
    backbone.base_learning_rate = 2e-4
    backbone.head_learning_rate_scale = 50.0
    return backbone


def full_size_config() -> ViltConfig:
    """ViLT-B/32 at 384 pixels, as published."""
    return ViltConfig(layer_norm_eps=1e-6)


def _build(checkpoint: Checkpoint, options: BackboneOptions, name: str) -> ViltBackbone:
    config = checkpoint.config
    config.hidden_dropout_prob = options.dropout or 0.0
    config.attention_probs_dropout_prob = 0.0  # the original's `drop_rate` leaves it at 0
    length = options.text_length or config.max_position_embeddings
    if length > config.max_position_embeddings:
        raise UserError(
            f"{name}: text length {length} exceeds its {config.max_position_embeddings} text positions."
        )
    vocabulary = Path(options.tokenizer) if options.tokenizer else checkpoint.vocabulary
    if vocabulary is not None and vocabulary.is_dir():
        vocabulary = vocabulary / "vocab.txt"
    processor = ViltProcessor(vocabulary, options.image_size or config.image_size, config.patch_size, length)
    if vocabulary is not None:
        check_vocabulary(processor.tokenizer.get_vocab_size(), config.vocab_size, vocabulary)
    if checkpoint.state:
        check_amount(config, checkpoint.state, name)
    with describing(name, "ViLT"):
        backbone = ViltBackbone(config, processor, name=name)
    if checkpoint.state:
        types = checkpoint.state.get("embeddings.token_type_embeddings.weight")
        if types is not None and types.ndim == 2:
            backbone.widen_token_types(types.shape[0])
        load_strictly(backbone.model, checkpoint.state, name, "ViLT")
    backbone.pretrained_heads = checkpoint.heads
    backbone.requires_grad_(True)
    return backbone.eval()


def read_checkpoint(source: str) -> Checkpoint:
    """Read a Hugging Face folder, an original `.ckpt`, or a hub id."""
    path = find_checkpoint(source, ["config.json", "vocab.txt", "*.safetensors", "pytorch_model.bin"])
    return _read_original(path) if path.is_file() else _read_hugging_face_folder(path)


def _read_config(folder: Path) -> ViltConfig:
    where = str(folder / "config.json")
    with describing(where, "ViLT"):
        config = ViltConfig.from_dict(read_settings(folder, "vilt"))
    check_sizes(config, where)
    return config


def _read_hugging_face_folder(folder: Path) -> Checkpoint:
    config = _read_config(folder)
    candidates = [folder / "model.safetensors", folder / "pytorch_model.bin"]
    weights = next((path for path in candidates if path.is_file()), None)
    if weights is None:
        raise UserError(f"{folder}: neither model.safetensors nor pytorch_model.bin in this folder.")
    tensors = read_tensors(weights)
    heads = {k: v for k, v in tensors.items() if k.split(".")[0] in HUGGING_FACE_HEADS}
    state = {k.removeprefix("vilt."): v for k, v in tensors.items() if k not in heads}
    state = {
        k: v for k, v in state.items() if not k.endswith(("position_ids", "text_embeddings.token_type_ids"))
    }
    if "pooler.dense.weight" not in state:
        raise UserError(f"{weights}: contains no pooler (pooler.dense.weight).")
    vocabulary = folder / "vocab.txt"
    return Checkpoint(config, state, heads, vocabulary if vocabulary.is_file() else None)


_ORIGINAL_TO_HUGGING_FACE = (
    (r"^text_embeddings\.", "embeddings.text_embeddings."),
    (r"^token_type_embeddings\.", "embeddings.token_type_embeddings."),
    (r"^transformer\.cls_token$", "embeddings.cls_token"),
    (r"^transformer\.pos_embed$", "embeddings.position_embeddings"),
    (r"^transformer\.patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^transformer\.norm\.", "layernorm."),
    (r"^transformer\.blocks\.(\d+)\.norm1\.", r"encoder.layer.\1.layernorm_before."),
    (r"^transformer\.blocks\.(\d+)\.norm2\.", r"encoder.layer.\1.layernorm_after."),
    (r"^transformer\.blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^transformer\.blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"^transformer\.blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
)


def convert_original(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename an original checkpoint's tensors to Hugging Face's names and split its fused `qkv`.

    Returns:
        The tensors of the encoder, and those of the heads under their original names.
    """
    state: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key.split(".")[0] in HEADS:
            heads[key] = tensor
            continue
        if key.endswith("position_ids"):
            continue  # a buffer of 0, 1, 2, …
        fused = re.match(r"^transformer\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)$", key)
        if fused:
            for role, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                state[f"encoder.layer.{fused[1]}.attention.attention.{role}.{fused[2]}"] = part
            continue
        state[renamed(key, _ORIGINAL_TO_HUGGING_FACE)] = tensor
    return state, heads


def config_from_original(tensors: dict[str, Tensor], num_heads: int | None = None) -> ViltConfig:
    """The configuration that follows from the shapes of an original checkpoint.

    num_heads: attention heads, which no shape shows; None: as many as have 64 channels each.

    Raises:
        UserError: a key of ViLT is missing.
    """
    try:
        width, channels, patch, _ = tensors["transformer.patch_embed.proj.weight"].shape
        grid = tensors["transformer.pos_embed"].shape[1] - 1
        text = tensors["text_embeddings.position_embeddings.weight"].shape[0]
        vocabulary = tensors["text_embeddings.word_embeddings.weight"].shape[0]
        mlp = tensors["transformer.blocks.0.mlp.fc1.weight"].shape[0]
        types = tensors["token_type_embeddings.weight"].shape[0]
    except KeyError as error:
        raise UserError(f"not an original ViLT checkpoint: key {error.args[0]} is missing.") from error
    depth = 1 + max(int(k.split(".")[2]) for k in tensors if k.startswith("transformer.blocks."))
    return ViltConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=num_heads or width // 64,
        intermediate_size=mlp,
        image_size=int(grid**0.5) * patch,
        patch_size=patch,
        num_channels=channels,
        max_position_embeddings=text,
        modality_type_vocab_size=types,
    )


def _read_original(path: Path) -> Checkpoint:
    tensors = read_tensors(path)
    with describing(str(path), "ViLT"):
        try:
            config = config_from_original(tensors)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        check_sizes(config, str(path))
        state, heads = convert_original(tensors)
    return Checkpoint(config, state, heads, None)
