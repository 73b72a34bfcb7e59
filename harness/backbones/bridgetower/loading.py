"""Load BridgeTower's weights from Hugging Face's form: a local folder or a hub id."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from harness.backbones.base import BackboneOptions
from harness.backbones.bridgetower.config import BridgeTowerSizes, sizes_of
from harness.backbones.bridgetower.model import BridgeTowerBackbone
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
)
from harness.backbones.meter.loading import resize_positions
from harness.backbones.meter.processor import MeterProcessor, vocabulary_files
from harness.errors import UserError

IMAGE_SIZE = 384
"""Pixels; the size at which the base model was fine-tuned on NLVR2, SNLI-VE and retrieval (VQA: 576). Weights whose
patches do not divide it (the large model's 14 pixels) keep the size of their pre-training."""


TEXT_LENGTH = 50
"""Maximum text length in tokens, as published (retrieval: 40)."""


HEADS = ("mlm_score", "itm_score", "itc_text_head", "itc_image_head", "itc_cross_modal_head", "logit_scale")
"""Heads of pre-training, which are kept apart from the encoder."""


UNUSED = {
    r"^text_model\.pooler\.": "RoBERTa's pooler: BridgeTower pools after the fusion layers",
    r"\.position_ids$": "a buffer of 0, 1, 2, …",
    r"^text_model\.embeddings\.token_type_ids$": "a buffer of zeros",
}
"""Keys that the forward pass never reads, with the reason."""


_POSITIONS = "image_encoder.embeddings.position_embedding.weight"


_FILES = ("model.safetensors", "pytorch_model.bin")


_HUB_FILES = ("*.json", "*.txt", *_FILES)


def load_bridgetower(options: BackboneOptions) -> BridgeTowerBackbone:
    """BridgeTower from `options.weights`: a folder, a hub id such as BridgeTower/bridgetower-base, or `random`.

    Raises:
        UserError: no weights are given, or they cannot be read, belong to another model, or lack a key.
    """
    if options.weights is None:
        raise UserError(
            "bridgetower: there are no default weights. Pass a folder or hub id with --weights, such as "
            "BridgeTower/bridgetower-base or BridgeTower/bridgetower-large-itm-mlm, or use --weights random."
        )
    if options.weights == "random":
        with fixed_generator():
            return build_bridgetower(Checkpoint(BridgeTowerSizes(), {}, {}, None), options)
    return build_bridgetower(read_checkpoint(options.weights), options)


def build_bridgetower(checkpoint: Checkpoint, options: BackboneOptions) -> BridgeTowerBackbone:
    """Build the backbone of a checkpoint, with its position embeddings resized to the chosen image size.

    Raises:
        UserError: the options or the weights do not fit.
    """
    config: BridgeTowerSizes = checkpoint.config
    if options.image_size is not None:
        config.image_size = options.image_size
    elif IMAGE_SIZE % config.patch_size == 0:
        config.image_size = IMAGE_SIZE
    length = options.text_length or min(TEXT_LENGTH, config.text_positions)
    if length > config.text_positions:
        raise UserError(
            f"bridgetower: text length {length} exceeds its {config.text_positions} text positions."
        )
    vocabulary = Path(options.tokenizer).expanduser() if options.tokenizer else checkpoint.vocabulary
    if vocabulary is not None:
        vocabulary_files(vocabulary)
    processor = MeterProcessor(vocabulary, config.image_size, config.patch_size, length)
    # The rates of fine-tuning on VQA: 1e-5, fusion ×5, head ×50.
    if vocabulary is not None:
        check_vocabulary(processor.tokenizer.get_vocab_size(), config.vocab_size, vocabulary)
    if checkpoint.state:
        check_amount(config, checkpoint.state, "bridgetower")
    with describing("bridgetower", "BridgeTower"):
        backbone = BridgeTowerBackbone(config, processor, "bridgetower", base_learning_rate=5e-5)
    if checkpoint.state:
        with describing(f"bridgetower: {_POSITIONS}", "BridgeTower"):
            positions = resize_positions(checkpoint.state[_POSITIONS], config.image_size // config.patch_size)
        state = {**checkpoint.state, _POSITIONS: positions}
        load_strictly(backbone.model, state, "bridgetower", "BridgeTower")
    backbone.pretrained_heads = checkpoint.heads
    backbone.requires_grad_(True)
    return backbone.eval()


def read_checkpoint(source: str) -> Checkpoint:
    """Read a folder with Hugging Face's `config.json` and weights, or a hub id.

    Raises:
        UserError: it cannot be read, or is not a BridgeTower checkpoint.
    """
    folder = find_checkpoint(source, _HUB_FILES)
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder with config.json and weights.")
    try:
        config = sizes_of(read_settings(folder, "bridgetower"))
        check_sizes(config, str(folder / "config.json"))
    except UserError as error:
        text = str(error)
        raise UserError(text if str(folder) in text else f"{folder / 'config.json'}: {text}") from None
    weights = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if weights is None:
        raise UserError(f"{folder}: no {' or '.join(_FILES)} in this folder.")
    with describing(str(weights), "BridgeTower"):
        converted = convert(read_tensors(weights), config)
    if _POSITIONS not in converted.state:
        raise UserError(
            f"{weights}: not BridgeTower's weights: its image encoder has no position embeddings."
        )
    has_vocabulary = any((folder / name).is_file() for name in ("tokenizer.json", "merges.txt"))
    return replace(converted, vocabulary=folder if has_vocabulary else None)


_BLOCK = r"^vision_model\.visual\.transformer\.resblocks\.(\d+)\."


_TO_OURS = (
    (r"^text_model\.", "text_encoder."),
    (r"^vision_model\.visual\.embeddings\.", "image_encoder.embeddings."),
    (r"^vision_model\.visual\.ln_pre\.", "image_encoder.pre_layrnorm."),
    (r"^vision_model\.visual\.ln_post\.", "image_encoder.post_layernorm."),
    (rf"{_BLOCK}ln_(\d)\.", r"image_encoder.encoder.layers.\1.layer_norm\2."),
    (rf"{_BLOCK}attn\.", r"image_encoder.encoder.layers.\1.self_attn."),
    (rf"{_BLOCK}mlp\.c_fc\.", r"image_encoder.encoder.layers.\1.mlp.fc1."),
    (rf"{_BLOCK}mlp\.c_proj\.", r"image_encoder.encoder.layers.\1.mlp.fc2."),
    (r"^cross_modal_(text|image)_transform\.", r"\1_projection."),
    (r"^cross_modal_(text|image)_pooler\.", r"\1_pooler."),
    (r"^cross_modal_(text|image)_layernorm\.", r"\1_norm."),
)


def convert(tensors: Mapping[str, Tensor], config: BridgeTowerSizes) -> Checkpoint:
    """Rename Hugging Face's tensors to our names and split CLIP's fused `in_proj`.

    Heads and unused keys are returned separately. An unknown key keeps its name, and `load_strictly` refuses it.
    """
    state: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    unused: dict[str, str] = {}
    for full, tensor in tensors.items():
        key = full.removeprefix("bridgetower.")
        reason = next((reason for pattern, reason in UNUSED.items() if re.search(pattern, key)), None)
        if reason is not None:
            unused[full] = reason
        elif key.split(".")[0] in HEADS:
            heads[key] = tensor
        else:
            state |= _convert(key, tensor, config.num_hidden_layers)
    return Checkpoint(config, state, heads, None, unused)


def _convert(key: str, tensor: Tensor, depths: int) -> dict[str, Tensor]:
    """One tensor under our name, or three if query, key and value are fused in it."""
    if layer := re.match(r"^cross_modal_(text|image)_layers\.(\d+)\.", key):
        place = int(layer[2]) + (depths if layer[1] == "image" else 0)
        return {f"layers.{place}.{key[layer.end() :]}": tensor}
    if link := re.match(r"^cross_modal_(text|image)_link_tower\.(\d+)\.LayerNorm\.", key):
        place = int(link[2]) + (depths - 1 if link[1] == "image" else 0)
        return {f"links.{place}.{key[link.end() :]}": tensor}
    renamed = key
    for pattern, replacement in _TO_OURS:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            break
    if fused := re.match(r"^(.*)\.in_proj_(weight|bias)$", renamed):
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{fused[1]}.{role}_proj.{fused[2]}": part for role, part in parts}
    return {renamed: tensor}
