"""How long a cell will take, before it is run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache

import torch

from harness.measure.flops import count_forward
from harness.plan import Cell, Workplace
from harness.record import Record
from harness.seeds import generator

EFFICIENCY = 0.5
"""Share of the rate of plain matrix products that a training step reaches."""
PASSES = 3.0
"""A training step costs about three forward passes."""
SAMPLE = 256
"""Training texts whose mean length is taken for all."""


def estimate_seconds(cell: Cell, records: Sequence[Record]) -> float:
    """Seconds of search, training and evaluation, from the last of `records` that is alike, else from FLOPs."""
    workplace = cell.workplace
    method = cell.method()
    search_epochs = getattr(method.options, "search_epochs", 0) if method.searches else 0
    examples = len(workplace.data.splits["train"]) * (workplace.training.epochs + search_epochs)
    passes = PASSES * examples * passes_of_an_example(workplace) + evaluation_passes(workplace)
    for record in reversed(records):
        same = record.cell.method.name == method.name and record.cell.task.name == workplace.task.name
        on_it = record.cell.backbone.name == workplace.backbone_name
        precision = record.protocol.get("precision") == workplace.request.precision
        if same and on_it and precision and record.training is not None:
            rate = record.training.examples_per_second * PASSES * passes_of_an_example(workplace)
            return passes / rate
    return passes * _forward_flops(id(workplace), workplace) / (EFFICIENCY * flops_rate())


def passes_of_an_example(workplace: Workplace) -> int:
    """Texts that a training example is put through the backbone with: retrieval's has negatives."""
    return 1 + int(getattr(workplace.task.options, "negatives", 0))


def evaluation_passes(workplace: Workplace) -> int:
    """Forward passes to evaluate validation data after each epoch, and both splits at the end."""
    total = 0
    for split, times in (("val", workplace.training.epochs + 1), ("test", 1)):
        examples = workplace.data.splits[split]
        ranked = len({example.group for example in examples}) if workplace.task.evaluates_splits else 1
        total += times * len(examples) * ranked
    return total


_FLOPS: dict[int, int] = {}


def _forward_flops(key: int, workplace: Workplace) -> int:
    if key not in _FLOPS:
        backbone = workplace.fresh_backbone()
        head = workplace.task.build_head(backbone, generator(0, "estimate"))
        texts = [example.text for example in workplace.data.splits["train"][:SAMPLE]]
        lengths = [len(tokens) for tokens in backbone.processor.tokenize(texts)]
        counts = count_forward(
            workplace.task,
            backbone,
            head,
            None,
            image_size=workplace.measured_input.image_size,
            text_length=round(sum(lengths) / len(lengths)),
        )
        _FLOPS[key] = counts.flops_total
    return _FLOPS[key]


@cache
def flops_rate(size: int = 768, seconds: float = 0.2) -> float:
    """FLOP/s of this machine's matrix products, from a short try."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    (left @ right).sum().item()
    started, rounds = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        (left @ right).sum().item()
        rounds += 1
    return 2.0 * size**3 * rounds / (time.perf_counter() - started)
