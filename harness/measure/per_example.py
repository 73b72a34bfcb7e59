"""Costs of a model on real examples, for methods whose cost depends on the input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.backbones.base import Backbone
from harness.measure.flops import count_macs
from tasks.base import Batch, Example, Task

EXAMPLES = 64
"""Number of test examples for which costs are counted."""


@dataclass(frozen=True)
class PerExample:
    """Multiply-accumulates of single examples: mean, 10th and 90th percentile of n.

    untouched_mean: of the backbone as loaded, on the same examples.
    """

    mean: float
    p10: float
    p90: float
    n: int
    untouched_mean: float


def summarize(macs: Sequence[int], untouched: Sequence[int]) -> PerExample:
    """Mean and percentiles, which are interpolated linearly."""
    low, high = np.percentile(macs, [10, 90])
    return PerExample(float(np.mean(macs)), float(low), float(high), len(macs), float(np.mean(untouched)))


def chosen_examples(examples: Sequence[Example], count: int = EXAMPLES) -> list[Example]:
    """`count` examples, always the same ones: those with the lowest hashes of their ids."""
    return sorted(examples, key=lambda each: hashlib.sha256(each.id.encode()).digest())[:count]


def count_examples(
    task: Task[Any],
    backbone: Backbone,
    head: nn.Module,
    method_modules: Sequence[nn.Module],
    batches: Iterable[Batch],
    alike: Callable[[Batch], Hashable] | None = None,
) -> list[int]:
    """MACs of one inference pass for each of `batches`, which hold one example each.

    The model must be in evaluation mode.

    alike: batches for which it returns equal keys cost the same, and only the first of them is counted.

    Raises:
        MeasurementError: an operator that multiplies matrices and has no formula was run.
    """
    device = next(backbone.parameters()).device
    counted: list[int] = []
    known: dict[Hashable, int] = {}
    for batch in batches:
        key = None if alike is None else alike(batch)
        if alike is not None and key in known:
            counted.append(known[key])
            continue
        moved = replace(batch, targets=None).to(device)
        height, width = moved.inputs[0].pixels.shape[-2:]

        def run(batch: Batch = moved) -> None:
            with torch.no_grad():
                task.forward(backbone, head, batch)

        counts = count_macs(
            backbone,
            head,
            run,
            method_modules,
            text_length=moved.inputs[0].input_ids.shape[1],
            image_size=(height, width),
        )
        known[key] = counts.macs_total
        counted.append(counts.macs_total)
    return counted
