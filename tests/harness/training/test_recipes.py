"""The published recipes: each parameter trains at the rate that the authors' code gives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from harness.backbones.base import BackboneOptions
from harness.config import RunSettings
from harness.config.sources import make_settings
from harness.experiment.plan import load_backbone
from harness.experiment.published import by_recipe
from harness.registry import build_method, resolve_backbone
from harness.specs import Spec
from harness.training.model import TaskModel
from harness.training.optim import build_optimizer


def settings_of(name: str) -> RunSettings:
    """The settings of a run that names only the method, the task and the backbone."""
    method, backbone, task = name.split("-")
    (settings,) = by_recipe(make_settings(methods=method, tasks=task, backbone=backbone, recipe="published"))
    return settings


class Head(nn.Sequential):
    """Linear, LayerNorm, linear, as the tasks' heads are."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def groups(name: str, blocks: str | None = None) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter that trains, by name, at full size without memory."""
    settings = settings_of(name)
    spec = settings.methods[0]
    if blocks is not None:
        spec = type(spec)(spec.name, {**spec.options, "blocks": blocks})
    with torch.device("meta"):
        options = settings.backbone_options.model_copy(update={"weights": "random"})
        backbone = load_backbone(settings.backbone, options)
        method = build_method(spec)
        method.adapt(backbone, torch.Generator())
        model: Any = TaskModel(None, backbone, Head(backbone.feature_dim))  # type: ignore[arg-type]
    for parameter in backbone.common_parameters():
        parameter.requires_grad_(True)
    training = settings.training
    assert training.learning_rate is not None
    assert training.head_learning_rate is not None
    optimizer = build_optimizer(model, training, training.learning_rate, training.head_learning_rate)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("das-meter-vqa", 512),
        ("das-meter-nlvr2", 256),
        ("das-meter-retrieval", 512),
        ("das-vilt-vqa", 256),
        ("das-vilt-nlvr2", 128),
        ("das-vilt-retrieval", 256),
    ],
)
def test_batches_and_decay_are_the_published_ones(name: str, batch: int) -> None:
    settings = settings_of(name)
    assert settings.training.batch_size == batch
    found = groups(name, "joint.4" if "vilt" in name else "text.1")
    assert {decay for _, decay in found.values()} == {0.0, 0.01}
    assert {decay for part, (_, decay) in found.items() if part.endswith("_embeddings.weight")} == {0.01}


def test_the_text_token_types_of_vilt_train_in_the_published_variant_alone() -> None:
    def trained(variant: str) -> set[str]:
        with torch.device("meta"):
            backbone = resolve_backbone("vilt")(BackboneOptions(weights="random"))
            build_method(Spec("das", {"variant": variant, "blocks": "joint.4"})).adapt(
                backbone, torch.Generator()
            )
        own = {id(parameter) for parameter in backbone.common_parameters()}
        return {name for name, parameter in backbone.named_parameters() if id(parameter) in own}

    (extra,) = trained("published") - trained("sound")
    assert extra == "model.embeddings.text_embeddings.token_type_embeddings.weight"
    backbone = resolve_backbone("vilt-mini")(BackboneOptions())
    text_types = backbone.get_submodule("model.embeddings.text_embeddings.token_type_embeddings").weight
    assert tuple(text_types.shape) == (2, backbone.width)  # at full size 2 × 768 = 1,536


def rates(found: dict[str, tuple[float, float]], part: str) -> set[float]:
    chosen = {rate for name, (rate, _) in found.items() if part in name}
    assert chosen, part
    return chosen


@pytest.mark.parametrize(
    ("name", "base", "block", "head"),
    [
        ("das-meter-vqa", 2.5e-5, 1.25e-4, 1.25e-3),
        ("das-meter-nlvr2", 5e-5, 2.5e-4, 5e-4),
        ("das-meter-retrieval", 5e-5, 2.5e-4, 5e-5),
    ],
)
def test_das_on_meter_has_a_rate_per_group(name: str, base: float, block: float, head: float) -> None:
    found = groups(name, "text.1+text.2+image.1+image.2")
    assert rates(found, ".shortcut.") == {base}
    assert rates(found, "backbone.prompt.token") == {base}
    assert rates(found, "token_type_embeddings") == {base}
    assert not any("text_encoder" in name for name in found)
    assert rates(found, ".parallel.") == {block}
    assert rates(found, ".post_norm.") == {block}
    assert rates(found, "_pooler.") == {block}
    assert rates(found, "head.") == {head}


@pytest.mark.parametrize(
    ("name", "base", "head"),
    [("das-vilt-vqa", 1e-4, 1e-3), ("das-vilt-nlvr2", 5e-4, 5e-4), ("das-vilt-retrieval", 5e-4, 5e-4)],
)
def test_das_on_vilt_has_one_rate_and_the_heads(name: str, base: float, head: float) -> None:
    found = groups(name, "joint.4")
    assert rates(found, ".shortcut.") == rates(found, ".parallel.") == rates(found, "_embeddings.") == {base}
    assert rates(found, "backbone.") == {base}
    assert rates(found, "head.") == {head}


def test_full_tuning_of_meter_on_vqa_has_five_times_the_rate_in_the_fusion_and_fifty_in_the_head() -> None:
    found = groups("full-meter-vqa")
    assert rates(found, "_encoder.") == {5e-6}
    assert rates(found, "token_type_embeddings") == {5e-6}
    for part in ("model.layers.", "_pooler.", "_projection."):
        assert rates(found, part) == {5 * 5e-6}
    assert rates(found, "head.") == {50 * 5e-6}


def test_gains_of_inserted_norms_and_of_the_head_decay_and_no_bias_does() -> None:
    found = groups("das-meter-vqa", "text.1+text.2+image.1+image.2")
    decays = {name: decay for name, (_, decay) in found.items()}
    assert {decay for name, decay in decays.items() if name.endswith(".bias")} == {0.0}
    assert {decay for name, decay in decays.items() if ".norm.weight" in name or name == "head.1.weight"} == {
        0.01
    }
    full = groups("full-vilt-vqa")
    assert {decay for name, (_, decay) in full.items() if "layernorm" in name} == {0.0}
