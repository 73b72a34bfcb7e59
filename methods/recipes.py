"""The published training recipes: the settings of the authors' public code, by method, backbone and task.

From ViLT (dandelin/ViLT), METER (zdou0830/METER) and DAS (DoubtedSteam/DAS).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from methods.base import Recipe

_SHARED: Mapping[str, Any] = {
    "augment": "randaugment",
    "dropout": 0.1,
    "weight_decay": 0.01,
    "decay_norms": True,
    "warmup": 0.1,
    "betas": (0.9, 0.98),
}

_DATA: Mapping[tuple[str, str], tuple[int, int, int, int]] = {
    ("meter", "vqa"): (384, 50, 512, 10),
    ("meter", "nlvr2"): (288, 50, 256, 10),
    ("meter", "retrieval"): (384, 40, 512, 10),
    ("meter", "snli_ve"): (384, 50, 64, 5),
    ("vilt", "vqa"): (384, 40, 256, 10),
    ("vilt", "nlvr2"): (384, 40, 128, 10),
    ("vilt", "retrieval"): (384, 40, 256, 10),
}
"""Image size, text length, batch size and epochs."""

_RATES: Mapping[str, Mapping[tuple[str, str], tuple[float, float | None, float]]] = {
    "full": {
        ("meter", "vqa"): (5e-6, 2.5e-5, 2.5e-4),
        ("meter", "nlvr2"): (1e-5, 5e-5, 1e-4),
        ("meter", "retrieval"): (5e-6, 2.5e-5, 5e-6),
        ("meter", "snli_ve"): (2e-6, 1e-5, 2e-5),
        ("vilt", "vqa"): (1e-4, None, 1e-3),
        ("vilt", "nlvr2"): (1e-4, None, 1e-4),
        ("vilt", "retrieval"): (1e-4, None, 1e-4),
    },
    "das": {
        ("meter", "vqa"): (2.5e-5, 1.25e-4, 1.25e-3),
        ("meter", "nlvr2"): (5e-5, 2.5e-4, 5e-4),
        ("meter", "retrieval"): (5e-5, 2.5e-4, 5e-5),
        ("meter", "snli_ve"): (2e-6, 1e-5, 2e-5),
        ("vilt", "vqa"): (1e-4, None, 1e-3),
        ("vilt", "nlvr2"): (5e-4, None, 5e-4),
        ("vilt", "retrieval"): (5e-4, None, 5e-4),
    },
}
"""Learning rates: of what has no other, of the blocks and poolers (None: no other), of the head."""

_OPTIONS: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("das", "meter"): {"variant": "published"},
    ("das", "vilt"): {"variant": "published", "skip": "1"},
}

_TASK_OPTIONS: Mapping[str, Mapping[str, str]] = {"vqa": {"targets": "raw"}}

_OTHER_SIZES: Mapping[tuple[str, str, str], int] = {("full", "meter", "vqa"): 576}
"""Image sizes that differ from those of DAS."""


def recipes_of(method: str) -> Mapping[tuple[str, str], Recipe]:
    """The published recipes of a method, by backbone and task."""
    found: dict[tuple[str, str], Recipe] = {}
    for (backbone, task), (rate, block_rate, head_rate) in _RATES[method].items():
        image_size, text_length, batch_size, epochs = _DATA[backbone, task]
        settings = {
            **_SHARED,
            "image_size": _OTHER_SIZES.get((method, backbone, task), image_size),
            "text_length": text_length,
            "batch_size": batch_size,
            "epochs": epochs,
            "learning_rate": rate,
            "block_learning_rate": block_rate,
            "head_learning_rate": head_rate,
        }
        options = _OPTIONS.get((method, backbone), {})
        found[backbone, task] = Recipe(settings, options, _TASK_OPTIONS.get(task, {}))
    return MappingProxyType(found)
