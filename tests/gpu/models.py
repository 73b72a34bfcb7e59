"""Full-size models with random weights, as they train and as they are deployed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from harness.backbones.base import Backbone, BackboneOptions
from harness.measure.flops import count_macs
from harness.registry import build_method, build_task, resolve_backbone
from harness.specs import parse_spec
from harness.training.model import TaskModel
from methods.base import Method
from tasks.base import Batch

CUDA = torch.device("cuda")
TEXT_LENGTH = 40
FULL_SIZE = {"vilt": (384, 576), "meter": (384, 384)}
"""Height and width in pixels of the images, by backbone."""


def full_size(name: str) -> Backbone:
    """A backbone with random weights, the same ones at each call, on the CPU."""
    return copy.deepcopy(_loaded(name))


@cache
def _loaded(name: str) -> Backbone:
    torch.manual_seed(0)
    options = BackboneOptions(weights="random", image_size=384, text_length=TEXT_LENGTH)
    return resolve_backbone(name)(options)


def adapted(spec: str, backbone: Backbone) -> tuple[Method[Any], TaskModel]:
    """A backbone adapted by a method, with VQA's head of 3,129 answers."""
    generator = torch.Generator().manual_seed(0)
    method = build_method(parse_spec(spec))
    method.adapt(backbone, generator)
    backbone.pooled_token_only = method.per_token
    task = build_task(parse_spec("vqa"))
    task.without_data()
    head = task.build_head(backbone, generator)
    for parameter in [*backbone.common_parameters(), *head.parameters()]:
        parameter.requires_grad_(True)
    return method, TaskModel(task, backbone, head).to(CUDA)


def deployed(name: str, spec: str, dtype: torch.dtype) -> TaskModel:
    """The finalised model with weights of this type."""
    method, model = adapted(spec, full_size(name))
    method.finalize(model.backbone)
    return model.requires_grad_(False).eval().to(dtype)


def batch_of(name: str, backbone: Backbone, size: int, dtype: torch.dtype, text_length: int) -> Batch:
    """Random inputs on the GPU; pixels of this type."""
    generator = torch.Generator().manual_seed(0)
    inputs = backbone.example_inputs(size, text_length, FULL_SIZE[name], generator).to(CUDA)
    inputs = replace(inputs, pixels=inputs.pixels.to(dtype))
    return Batch((inputs,), None, tuple(map(str, range(size))))


def forward_of(model: nn.Module, batch: Batch) -> Callable[[], object]:
    """One forward pass without gradient, ready to be called."""

    def run() -> object:
        with torch.inference_mode():
            return model(batch)

    return run


def macs_of(model: TaskModel, run: Callable[[], object]) -> int:
    """Multiply-accumulates of one call; zero rows that pad a matrix count."""
    counts = count_macs(model.backbone, model.head, run, (), text_length=TEXT_LENGTH, image_size=(1, 1))
    return counts.macs_total
