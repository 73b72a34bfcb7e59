"""Measure the latency of finished cells side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import cycle

import torch
from safetensors.torch import load_file

from harness.backbones.base import Backbone
from harness.backbones.folding import fold
from harness.backbones.generative import GenerativeBackbone
from harness.digests import digest_json
from harness.errors import UserError, counted, one_line
from harness.experiment.build import deployed_model, loader
from harness.experiment.plan import Cell, Testbed
from harness.measure.decoding import next_token
from harness.measure.latency import LatencySample, executions, measure_latency, weights_type
from harness.measure.per_example import chosen_examples
from harness.records.record import Failure, Latency, Record
from harness.records.store import WEIGHTS, Store
from harness.training.fabric import make_fabric
from harness.training.model import TaskModel
from harness.training.seeds import generator
from tasks.base import Batch, Example

UNTOUCHED = "untouched"
"""Name of the folded pretrained backbone in a latency measurement. Full tuning deploys the same architecture."""


SINGLE, SMALL_BATCH, LARGE_BATCH = (1, 50, 1.0), (16, 10, 1.0), (64, 10, 1.0)
"""Batch size, minimum number of iterations and minimum seconds of a latency measurement. The last one is for GPUs."""


def measure_side_by_side(
    cells: Iterable[Cell],
    store: Store,
    on_stage: Callable[[str], None] = lambda text: None,
    again: bool = False,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> list[Record]:
    """Measure one finished cell per method and the untouched backbone, interleaved, for each testbed.

    again: also measure cells that have already been measured together.
    on_step: called with the number of measurements that are done and their total, before and after each.
    Returns the changed records. A measurement that crashes is stored in them as a `Failure`.

    Raises:
        UserError: a record or its weights cannot be read.
    """
    by_testbed: dict[int, list[Cell]] = {}
    for cell in cells:
        if store.finished(cell.id):
            by_testbed.setdefault(id(cell.testbed), []).append(cell)
    rivals = [
        list({cell.label: cell for cell in reversed(found)}.values())[::-1] for found in by_testbed.values()
    ]
    to_measure = [found for found in rivals if again or not _measured_together(found, store)]
    total, done = sum(len(_efforts(found[0].testbed)) for found in to_measure), 0

    def step() -> None:
        nonlocal done
        done += 1
        on_step(done, total)

    changed: list[Record] = []
    for contestants in to_measure:
        where = f"{contestants[0].testbed.task.name} on {contestants[0].testbed.backbone_name}"
        on_stage(f"latency of {counted(len(contestants), 'method')}, interleaved: {where}")
        on_step(done, total)
        try:
            changed += _measure(contestants, store, on_stage, step)
        except UserError:
            raise
        except Exception as error:
            failure = Failure(error=one_line(error))
            on_stage(f"latency could not be measured: {failure.error}")
            for cell in contestants:
                changed.append(store.record(cell.id).model_copy(update={"latency": failure}))
                store.commit(changed[-1])
    return changed


def _efforts(testbed: Testbed) -> tuple[tuple[int, int, float], ...]:
    """Batch size, minimum number of iterations and minimum seconds of each measurement."""
    on_gpu = make_fabric(testbed.settings).device.type == "cuda"
    return (SINGLE, SMALL_BATCH, LARGE_BATCH) if on_gpu else (SINGLE, SMALL_BATCH)


def _measured_together(cells: Sequence[Cell], store: Store) -> bool:
    groups = []
    for cell in cells:
        latency = store.record(cell.id).latency
        groups.append({one.group for one in latency} if not isinstance(latency, Failure) else set())
    return bool(set.intersection(*groups)) if groups else False


def _measure(
    cells: Sequence[Cell], store: Store, on_stage: Callable[[str], None], on_step: Callable[[], None]
) -> list[Record]:
    testbed = cells[0].testbed
    fabric = make_fabric(testbed.settings)
    dtype = weights_type(testbed.settings.training.precision)
    models = {cell.id: _deployed(cell, store).to(fabric.device, dtype) for cell in cells}
    backbone = testbed.fresh_backbone()  # not the shared one: building a head may add token types
    fold(backbone)  # like the models it is compared with
    head = testbed.task.build_head(backbone, generator(0, "latency"))
    untouched = TaskModel(testbed.task, backbone, head)
    models[UNTOUCHED] = untouched.requires_grad_(False).eval().to(fabric.device, dtype)
    moment = datetime.now().astimezone().isoformat()
    group = digest_json([moment, sorted(models)])
    measured: dict[str, list[Latency]] = {name: [] for name in models}
    # If any method's cost depends on the input, all methods are timed on the same real examples.
    dynamic = any(cell.method().dynamic for cell in cells)
    examples = chosen_examples(testbed.data.splits["test"]) if dynamic else None
    for batch_size, least, seconds in _efforts(testbed):
        batches = [_in_type(batch, dtype) for batch in _batches(testbed, batch_size, examples, fabric.device)]
        for part, runner in _parts(backbone).items():
            eager = {name: runner(model, batches) for name, model in models.items()}
            for execution, runs in executions(eager, fabric.device, on_stage, graphs=not dynamic).items():
                samples = measure_latency(runs, fabric.device, min_iterations=least, min_seconds=seconds)
                how = {"part": part, "execution": execution, "precision": _name(dtype)}
                for name, sample in samples.items():
                    found = _latency(testbed, sample, batch_size, group, examples)
                    measured[name].append(found.model_copy(update=how))
        on_step()
    changed = []
    for cell in cells:
        record = store.record(cell.id).model_copy(
            update={"latency": tuple(measured[cell.id]), "full_latency": tuple(measured[UNTOUCHED])}
        )
        store.commit(record)
        changed.append(record)
    return changed


def _deployed(cell: Cell, store: Store) -> TaskModel:
    """A cell's deployed model. Without its weights' file the weights are random, as values do not affect latency."""
    record = store.record(cell.id)
    weights = store.folder(cell.id) / WEIGHTS
    decision = None if record.search is None else record.search.decision
    return deployed_model(cell, load_file(weights) if weights.is_file() else None, decision)


def _batches(
    testbed: Testbed, batch_size: int, examples: Sequence[Example] | None, device: torch.device
) -> list[Batch]:
    """Batches of `examples`, or one random batch of the measured input size if None."""
    if examples is not None:
        return [
            replace(batch, targets=None).to(device)
            for batch in loader(testbed, "test", examples=examples, batch_size=batch_size)
            if len(batch) == min(batch_size, len(examples))  # a smaller last batch would distort the times
        ]
    size = testbed.measured_input
    inputs = testbed.backbone.example_inputs(
        batch_size, size.text_length, size.image_size, torch.Generator().manual_seed(0)
    ).to(device)
    parts = (inputs,) * testbed.task.images_per_example
    return [Batch(parts, None, tuple(str(row) for row in range(batch_size)))]


Runner = Callable[[TaskModel, Sequence[Batch]], Callable[[], object]]


def _parts(backbone: Backbone) -> dict[str, Runner]:
    """What is timed: a forward pass, or a generative backbone's prompt and each further token."""
    if isinstance(backbone, GenerativeBackbone):
        return {"prompt": _runner, "token": _token_runner}
    return {"pass": _runner}


def _runner(model: TaskModel, batches: Sequence[Batch]) -> Callable[[], object]:
    """A forward pass on the next batch. All models use the same batch in a round."""
    turns = cycle(batches)

    def run() -> object:
        with torch.inference_mode():
            return model(next(turns))

    return run


def _token_runner(model: TaskModel, batches: Sequence[Batch]) -> Callable[[], object]:
    """One token more behind the next batch's prompts, which have been run before."""
    backbone = model.backbone
    assert isinstance(backbone, GenerativeBackbone)
    with torch.inference_mode():
        turns = cycle([next_token(backbone, backbone.prefill(batch.inputs)) for batch in batches])

    def run() -> object:
        with torch.inference_mode():
            return next(turns)()

    return run


def _in_type(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with pixels in the weights' type."""
    return replace(batch, inputs=tuple(replace(part, pixels=part.pixels.to(dtype)) for part in batch.inputs))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _latency(
    testbed: Testbed,
    sample: LatencySample,
    batch_size: int,
    group: str,
    examples: Sequence[Example] | None,
) -> Latency:
    size = testbed.measured_input
    return Latency(
        batch_size=batch_size,
        image_size=size.image_size,
        text_length=size.text_length,
        p50_ms=sample.p50,
        p90_ms=sample.p90,
        n=sample.n,
        threads=sample.threads,
        device=sample.device,
        samples_ms=tuple(round(value, 4) for value in sample.samples_ms),
        wall_ms=() if sample.wall_ms == sample.samples_ms else tuple(round(v, 4) for v in sample.wall_ms),
        examples=None if examples is None else len(examples),
        others=None if sample.others is None else round(sample.others, 3),
        cores=os.cpu_count(),
        group=group,
    )
