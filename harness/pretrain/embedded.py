"""Embedded backbones and how each is pre-trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.backbones.base import BackboneOptions
from harness.backbones.llava import loading as llava_loading
from harness.backbones.meter import loading as meter_loading
from harness.backbones.vilt import loading as vilt_loading
from harness.pretrain.dialogues import load_with_image_encoder
from harness.pretrain.loop import Pretrainable
from harness.pretrain.recipe import LLAVA_STAGES, METER_STAGES, VILT_STAGES, Recipe


@dataclass(frozen=True)
class EmbeddedBackbone:
    """A backbone and its pre-training recipe.

    load: loads it with the weights of a folder, or with `weights="random"`.
    folder: weights that ship with this package.
    copied: files in `folder` that every folder of weights needs: configuration and vocabulary.
    stages: recipes that are run one after the other.
    """

    load: Callable[[BackboneOptions], Pretrainable]
    folder: Path
    copied: tuple[str, ...]
    stages: tuple[Recipe, ...]


EMBEDDED: Mapping[str, EmbeddedBackbone] = {
    "vilt-mini": EmbeddedBackbone(
        vilt_loading.load_vilt_mini, vilt_loading.MINI_FOLDER, ("config.json", "vocab.txt"), VILT_STAGES
    ),
    "meter-mini": EmbeddedBackbone(
        meter_loading.load_meter_mini,
        meter_loading.MINI_FOLDER,
        ("config.json", "tokenizer.json"),
        METER_STAGES,
    ),
    "llava-mini": EmbeddedBackbone(
        load_with_image_encoder,
        llava_loading.MINI_FOLDER,
        ("config.json", "tokenizer.json"),
        LLAVA_STAGES,
    ),
}
