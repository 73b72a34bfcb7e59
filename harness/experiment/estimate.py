"""Estimate how long a cell will take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache

import torch

from harness.experiment.plan import Cell, Testbed
from harness.measure.flops import count_forward
from harness.records.record import Record
from harness.training.seeds import generator

EFFICIENCY = 0.5
"""Speed of a training step relative to plain matrix products."""


PASSES = 3.0
"""A training step costs about three forward passes."""


SAMPLE = 256
"""Number of training texts from which the mean length is estimated."""


def estimate_seconds(cell: Cell, records: Sequence[Record]) -> float:
    """Seconds of search, training and evaluation: from the latest comparable record, else from FLOPs."""
    testbed = cell.testbed
    method = cell.method()
    searched = 0 if testbed.training.budget == "total" else method.search_epochs
    examples = len(testbed.data.splits["train"]) * (testbed.training.epochs + searched)
    passes = PASSES * examples * testbed.task.texts_per_example + evaluation_passes(testbed)
    for record in reversed(records):
        same = record.cell.method.name == method.name and record.cell.task.name == testbed.task.name
        on_it = record.cell.backbone.name == testbed.backbone_name
        precision = record.protocol.get("precision") == testbed.settings.training.precision
        if same and on_it and precision and record.training is not None:
            rate = record.training.examples_per_second * PASSES * testbed.task.texts_per_example
            return passes / rate
    return passes * _forward_flops(id(testbed), testbed) / (EFFICIENCY * flops_rate())


def evaluation_passes(testbed: Testbed) -> int:
    """Forward passes to evaluate the validation split after each epoch, and both splits at the end."""
    total = 0
    for split, times in (("val", testbed.training.epochs + 1), ("test", 1)):
        examples = testbed.data.splits[split]
        ranked = len({example.group for example in examples}) if testbed.task.evaluates_splits else 1
        total += times * len(examples) * ranked
    return total


_FLOPS: dict[int, int] = {}


def _forward_flops(key: int, testbed: Testbed) -> int:
    if key not in _FLOPS:
        backbone = testbed.fresh_backbone()
        head = testbed.task.build_head(backbone, generator(0, "estimate"))
        texts = [example.text for example in testbed.data.splits["train"][:SAMPLE]]
        lengths = [len(tokens) for tokens in backbone.processor.tokenize(texts)]
        counts = count_forward(
            testbed.task,
            backbone,
            head,
            None,
            image_size=testbed.measured_input.image_size,
            text_length=round(sum(lengths) / len(lengths)),
        )
        _FLOPS[key] = counts.flops_total
    return _FLOPS[key]


@cache
def flops_rate(size: int = 768, seconds: float = 0.2) -> float:
    """FLOP/s of matrix products on this machine, measured briefly."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    (left @ right).sum().item()
    started, rounds = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        (left @ right).sum().item()
        rounds += 1
    return 2.0 * size**3 * rounds / (time.perf_counter() - started)
