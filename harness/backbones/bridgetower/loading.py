"""Load BridgeTower's weights from Hugging Face's form: a local folder or a hub id."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from harness.backbones.base import BackboneOptions
from harness.backbones.bridgetower.config import BridgeTowerSizes, sizes_of
from harness.backbones.bridgetower.model import BridgeTowerBackbone
from harness.backbones.checkpoints import (
    Checkpoint,
    check_sizes,
    converted,
    describing,
    find_checkpoint,
    fixed_generator,
    read_settings,
    read_tensors,
    renamed,
)
from harness.backbones.meter.loading import (
    POSITIONS,
    assemble,
    clip_names,
    fusion_layer_name,
    split_in_proj,
)
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
    r".*\.position_ids$": "a buffer of 0, 1, 2, …",
    r"^text_model\.embeddings\.token_type_ids$": "a buffer of zeros",
}
"""Keys that the forward pass never reads, with the reason."""


_FILES = ("model.safetensors", "pytorch_model.bin")


_HUB_FILES = ("*.json", "*.txt", *_FILES)


def load_bridgetower(options: BackboneOptions) -> BridgeTowerBackbone:
    """BridgeTower from `options.weights`: a folder, a hub id such as BridgeTower/bridgetower-base, or `random`.

    Raises:
        UserError: no weights are given, or they cannot be read, belong to another model, or lack a key.
    """
    options.refuse_encoders("bridgetower")
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
    backbone = assemble(BridgeTowerBackbone, checkpoint, options, "bridgetower", "BridgeTower")
    backbone.base_learning_rate = 5e-5  # of fine-tuning on VQA: 1e-5, fusion ×5, head ×50
    return backbone


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
        checkpoint = convert(read_tensors(weights), config)
    if POSITIONS not in checkpoint.state:
        raise UserError(
            f"{weights}: not BridgeTower's weights: its image encoder has no position embeddings."
        )
    has_vocabulary = any((folder / name).is_file() for name in ("tokenizer.json", "merges.txt"))
    return replace(checkpoint, vocabulary=folder if has_vocabulary else None)


_TO_OURS = (
    (r"^text_model\.", "text_encoder."),
    (r"^vision_model\.visual\.embeddings\.", "image_encoder.embeddings."),
    *clip_names(r"vision_model\.visual"),
    (r"^cross_modal_(text|image)_transform\.", r"\1_projection."),
    (r"^cross_modal_(text|image)_pooler\.", r"\1_pooler."),
    (r"^cross_modal_(text|image)_layernorm\.", r"\1_norm."),
)


def convert(tensors: Mapping[str, Tensor], config: BridgeTowerSizes) -> Checkpoint:
    """Rename Hugging Face's tensors to our names and split CLIP's fused `in_proj`.

    Heads and unused keys are returned separately. An unknown key keeps its name, and `load_strictly` refuses it.
    """
    depths = config.num_hidden_layers

    def convert_one(key: str, tensor: Tensor) -> dict[str, Tensor]:
        if layer := fusion_layer_name(key, depths):
            return {layer: tensor}
        if link := re.match(r"^cross_modal_(text|image)_link_tower\.(\d+)\.LayerNorm\.", key):
            place = int(link[2]) + (depths - 1 if link[1] == "image" else 0)
            return {f"links.{place}.{key[link.end() :]}": tensor}
        return split_in_proj(renamed(key, _TO_OURS), tensor)

    encoder = {key.removeprefix("bridgetower."): tensor for key, tensor in tensors.items()}
    return converted(config, encoder, convert_one, HEADS, UNUSED)
