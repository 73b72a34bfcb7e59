"""Load LLaVA's weights from Hugging Face's form: a local folder or a hub id."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import LlavaConfig

from harness.backbones.base import BackboneOptions
from harness.backbones.checkpoints import (
    find_checkpoint,
    fixed_generator,
    load_strictly,
    read_settings,
    read_tensors,
    renamed,
)
from harness.backbones.llava.model import LlavaBackbone
from harness.backbones.llava.processor import LlavaProcessor
from harness.errors import UserError
from harness.files import read_json

MINI_FOLDER = Path(__file__).parent.parent / "weights" / "llava-mini"


TEXT_LENGTH = 128
"""Maximum length of a prompt in tokens, without image tokens."""


MINI_TEXT_LENGTH = 64
"""The same for `llava-mini`; the longest prompts of the embedded tasks are ScienceQA's."""


_TO_OURS = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
)
"""Names in older files and their current names."""


_HUB_FILES = ("*.json", "*.safetensors")


def load_llava(options: BackboneOptions) -> LlavaBackbone:
    """LLaVA from `options.weights`: a folder, a hub id such as llava-hf/llava-1.5-7b-hf, or `random`.

    Raises:
        UserError: no weights are given, or they cannot be read, belong to another model, or lack a key.
    """
    options.refuse_encoders("llava")
    if options.weights is None:
        raise UserError(
            "llava: there are no default weights. Pass a folder or hub id with --weights, such as "
            "llava-hf/llava-1.5-7b-hf, or use --weights random."
        )
    if options.weights == "random":
        with fixed_generator():
            return build_llava(LlavaConfig(), {}, None, options)
    folder = find_checkpoint(options.weights, _HUB_FILES)
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder with config.json and weights.")
    try:
        config = LlavaConfig.from_dict(read_settings(folder, "llava"))
        kinds = (config.vision_config.model_type, config.text_config.model_type)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'}: not a configuration of LLaVA ({error}).") from None
    if kinds != ("clip_vision_model", "llama"):
        raise UserError(
            f"{folder / 'config.json'}: {kinds[0]} with {kinds[1]}; only CLIP with LLaMA is supported."
        )
    return build_llava(config, read_folder(folder), folder, options)


def load_llava_mini(options: BackboneOptions) -> LlavaBackbone:
    """The embedded small LLaVA (8 layers of width 128); with `weights="random"` it is untrained.

    Raises:
        UserError: the folder has no such weights.
    """
    folder = MINI_FOLDER if options.weights in (None, "random") else Path(str(options.weights))
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no config.json in this folder; create the weights with `harness pretrain llava-mini`."
        )
    config = LlavaConfig.from_dict(read_settings(folder, "llava"))
    if options.weights == "random":
        with fixed_generator():
            backbone = build_llava(config, {}, folder, options, "llava-mini", MINI_TEXT_LENGTH)
    else:
        state = read_folder(folder)
        backbone = build_llava(config, state, folder, options, "llava-mini", MINI_TEXT_LENGTH)
    backbone.base_learning_rate = 8e-4  # full tuning on VQA's validation split: better than 2e-4 and 2.4e-3
    return backbone


def build_llava(
    config: LlavaConfig,
    state: Mapping[str, Tensor],
    vocabulary: Path | None,
    options: BackboneOptions,
    name: str = "llava",
    text_length: int = TEXT_LENGTH,
) -> LlavaBackbone:
    """Build the backbone and load `state`; empty: random weights.

    text_length: maximum length of a prompt if the options name none.

    Raises:
        UserError: the options or the weights do not fit.
    """
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    if options.image_size not in (None, side):
        raise UserError(f"{name}: its images have {side} pixels a side; leave out --image-size.")
    length = options.text_length or text_length
    tokenizer = Path(options.tokenizer).expanduser() if options.tokenizer else vocabulary
    backbone = LlavaBackbone(config, LlavaProcessor(tokenizer, side, patch, length), name)
    if state:
        expected = set(backbone.model.state_dict())
        kept = {name: tensor for name, tensor in state.items() if name in expected or not _unread(name)}
        load_strictly(backbone.model, kept, name, "LLaVA")
    backbone.requires_grad_(True)
    return backbone.eval()


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, from one file or from several with an index, under their current names.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = read_json(index).value
        places = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise UserError(f"{index}: not an index of weights: weight_map must hold names of files.")
        names = sorted(set(places.values()))
    else:
        names = ["model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name} in this folder.")
        tensors |= read_tensors(folder / name)
    return {renamed(name, _TO_OURS): tensor for name, tensor in tensors.items()}


def _unread(name: str) -> bool:
    """True for tensors that no forward pass reads: the image encoder's last layers and norm, and buffers."""
    tower = "model.vision_tower.vision_model."
    return name.startswith((f"{tower}encoder.layers.", f"{tower}post_layernorm.")) or name.endswith(
        (".position_ids", ".inv_freq")
    )
