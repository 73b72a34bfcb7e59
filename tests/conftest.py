from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from harness.backbones.base import BackboneOptions
from harness.backbones.checkpoints import Checkpoint, fixed_generator
from harness.backbones.meter.config import MeterConfig
from harness.backbones.meter.loading import build_meter, load_meter
from harness.backbones.meter.model import MeterBackbone
from harness.experiment import latency

# Tests run side by side, each on one core, and so do the processes they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _short_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency is measured with three calls instead of for seconds, as no test looks at how long they take."""
    for name in ("SINGLE", "SMALL_BATCH"):
        batch_size, *_ = getattr(latency, name)
        monkeypatch.setattr(latency, name, (batch_size, 3, 0.0))


def small_meter_config(**changes: int) -> MeterConfig:
    """Two depths of width 64 over one-layer encoders, 16-pixel patches, texts of at most 12 tokens."""
    settings = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "text_layers": 1,
        "text_intermediate_size": 80,
        "vocab_size": 50,
        "max_position_embeddings": 14,
        "image_layers": 1,
        "image_intermediate_size": 112,
        "patch_size": 16,
    }
    return MeterConfig(**{**settings, **changes})


@pytest.fixture
def make_meter() -> Callable[..., MeterBackbone]:
    """A function that builds a small METER for images of 32 pixels, with the same weights every time."""

    def make(**changes: int) -> MeterBackbone:
        options = BackboneOptions(image_size=32)
        with fixed_generator():
            backbone = build_meter(Checkpoint(small_meter_config(**changes), {}, {}, None), options, "meter")
            for name, parameter in backbone.named_parameters():
                if name.endswith("bias"):  # an untrained model's are all 0
                    torch.nn.init.normal_(parameter, std=0.2)
        return backbone

    return make


@pytest.fixture
def full_size_meter() -> Callable[..., MeterBackbone]:
    """A function that builds full-size METER on the meta device, which needs neither memory nor computation."""

    def make(image_size: int = 384) -> MeterBackbone:
        with torch.device("meta"):
            return load_meter(BackboneOptions(weights="random", image_size=image_size))

    return make
