"""Properties that every task declares, and profiling of tasks without data or weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from harness.backbones.base import BackboneOptions
from harness.backbones.vilt.loading import load_vilt_mini
from harness.registry import BUILT_IN, build_task
from harness.specs import parse_spec

OUTPUTS = {"vqa": 3129, "nlvr2": 2, "snli_ve": 3, "retrieval": 1, "nlvr": 2, "scienceqa": 5, "pope": 2}


def last_linear(head: nn.Module) -> nn.Linear:
    return [module for module in head.modules() if isinstance(module, nn.Linear)][-1]


@pytest.mark.parametrize("name", BUILT_IN["tasks"])
def test_a_head_is_built_as_published_without_data_or_weights(name: str) -> None:
    task = build_task(parse_spec(name))
    task.without_data()
    backbone = load_vilt_mini(BackboneOptions(weights="random"))
    assert not backbone.pretrained_heads
    head = task.build_head(backbone, torch.Generator().manual_seed(0))
    assert last_linear(head).out_features == OUTPUTS[name]
    assert last_linear(head).weight.std() > 0


@pytest.mark.parametrize("name", BUILT_IN["tasks"])
def test_number_of_images_and_texts_per_example(name: str) -> None:
    task = build_task(parse_spec(name))
    assert task.images_per_example == (2 if name == "nlvr2" else 1)
    assert task.texts_per_example == (16 if name == "retrieval" else 1)


def test_number_of_texts_in_retrieval_follows_the_negatives() -> None:
    assert build_task(parse_spec("retrieval[negatives=3]")).texts_per_example == 4


@pytest.mark.parametrize("name", BUILT_IN["tasks"])
def test_scorer_has_the_primary_metric_and_its_shares(name: str) -> None:
    task: Any = build_task(parse_spec(name))
    assert task.scorer.shares(task.primary_metric)
    assert task.scorer.files is not None
