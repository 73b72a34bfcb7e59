"""Run one cell: search, train, choose the epoch, finalise, predict, measure."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from harness.digests import digest_state
from harness.errors import UserError
from harness.experiment import search_stage
from harness.experiment.build import adapted_model, finalize, loader
from harness.experiment.cell_progress import Progress, keep_done
from harness.experiment.plan import Cell, Testbed
from harness.experiment.routes import cost_of_examples, find_routes
from harness.experiment.search_stage import FOUND, SEARCHED, Searched
from harness.measure.flops import ComputeCounts, count_forward
from harness.measure.live import model_tensors, peak_live_tensors
from harness.measure.memory import PeakMemory, track_peak_memory
from harness.measure.parameters import ParameterCounts, count_parameters
from harness.measure.per_example import PerExample
from harness.process import StopRequestedError
from harness.records.routes import RouteFile
from harness.training.blocks import optimized_blocks
from harness.training.checkpoint import (
    DamagedCheckpointError,
    Saving,
    load_checkpoint,
    load_tuned_state,
    restore_training,
    restoring,
    save_checkpoint,
    set_aside,
    training_state,
    tuned_state,
)
from harness.training.encoder_cache import cached_encoding, describe_cache
from harness.training.fabric import make_fabric
from harness.training.loop import Cost, State, predict, train_epoch
from harness.training.microbatch import MicroBatches
from harness.training.model import TaskModel
from harness.training.optim import build_optimizer, build_schedule
from harness.training.ranks import Ranks, on_first
from harness.training.seeds import derived_seed
from methods.base import Method
from tasks.base import Prediction
from tasks.resumable_scores import PartialScores

CHECKPOINT = "state.pt"


@dataclass(frozen=True)
class Outcome:
    """All results of a cell.

    full_compute: of the backbone as loaded, with the task's head (what full tuning deploys).
    compute_per_example: for methods whose cost depends on the input, else None.
    routes: which blocks each test example ran, for methods that route.
    warm_start: whether training started from the weights that the search trained.
    skipped_files: names of unreadable images; skipped_examples: number of examples left out because of them, by split.
    """

    metrics: Mapping[str, Mapping[str, float]]
    majority: float | None
    predictions: Mapping[str, list[Prediction]]
    parameters: ParameterCounts
    deployed_parameters: ParameterCounts
    compute: ComputeCounts
    full_compute: ComputeCounts
    compute_per_example: PerExample | None
    routes: RouteFile | None
    training_memory: PeakMemory
    training: Mapping[str, Any]
    search: Searched | None
    warm_start: bool
    tuned: Mapping[str, Tensor]
    curve: list[dict[str, float]]
    skipped_files: tuple[str, ...]
    skipped_examples: Mapping[str, int]


def run_cell(cell: Cell, scratch: Path, progress: Progress, ranks: Ranks | None = None) -> Outcome:
    """Run one cell, resuming from the last state saved in `scratch`.

    ranks: this process's place among those that run the cell together. Only the outcome on rank 0 has predictions
        and metrics, and only rank 0 writes into `scratch`.

    A checkpoint that cannot be used is renamed to `<name>.damaged`, and its stage starts again.

    Raises:
        StopRequestedError: a signal asked to stop; the state is saved.
        UserError: something the user must fix.
    """
    while True:
        try:
            return _run_cell(cell, scratch, progress, Ranks() if ranks is None else ranks)
        except DamagedCheckpointError as error:
            if ranks is not None and ranks.rank > 0:
                continue
            aside = set_aside(error.path)
            if error.path.name == SEARCHED:  # the decision without its weights is no use
                (scratch / FOUND).unlink(missing_ok=True)
            progress.note(
                f"{error.path}: damaged ({error.reason}); kept as {aside.name}, its stage starts again"
            )


def _run_cell(cell: Cell, scratch: Path, progress: Progress, ranks: Ranks) -> Outcome:
    testbed = cell.testbed
    task = testbed.task
    method = cell.method()
    fabric = make_fabric(testbed.settings, ranks)
    torch.manual_seed(derived_seed(cell.seed, f"dropout on rank {ranks.rank}" if ranks.rank else "dropout"))
    scratch.mkdir(parents=True, exist_ok=True)
    micro = MicroBatches.from_setting(testbed.training.micro_batch)
    searched = None
    if method.searches:
        searched = search_stage.search(cell, method, fabric, ranks, scratch, progress, micro)
    used = 0 if searched is None or testbed.training.budget == "epochs" else searched.trained
    model = adapted_model(cell, method)
    warm = searched is not None and search_stage.begin_warm(method, model, fabric, scratch)
    parameters = count_parameters(model.backbone, model.head, method.method_modules(model.backbone))
    memory = (
        None if fabric.device.type == "cuda" else _training_memory(cell, method, model, fabric, ranks, micro)
    )
    with cached_encoding(model.backbone, testbed.encodings) as encoder:
        if memory is None:
            with track_peak_memory(fabric.device) as tracker:
                best, curve, cost = _train(cell, method, model, fabric, ranks, scratch, progress, micro, used)
            memory = tracker.result
        else:
            best, curve, cost = _train(cell, method, model, fabric, ranks, scratch, progress, micro, used)
    load_tuned_state(model, best["tuned"])
    finalize(method, model.backbone)
    model.requires_grad_(False)
    deployed = count_parameters(model.backbone, model.head, method.method_modules(model.backbone))
    tuned = {name.removeprefix("backbone.") for name in best["tuned"]}
    with cached_encoding(model.backbone, testbed.encodings, evaluation=True, tuned=tuned):
        predictions, metrics = _report(cell, model, fabric, ranks, scratch, progress, micro, best["tuned"])
        routes = find_routes(cell, method, model) if method.dynamic and ranks.rank == 0 else None
    size = testbed.measured_input
    compute = count_forward(
        task, model.backbone, model.head, method, image_size=size.image_size, text_length=size.text_length
    )
    untouched = testbed.fresh_backbone().to(fabric.device)
    full_compute = count_forward(
        task, untouched, model.head, None, image_size=size.image_size, text_length=size.text_length
    )
    learned = {
        "epochs": cost.examples / len(testbed.data.splits["train"]),
        "best_epoch": best["epoch"],
        "steps": cost.steps,
        "seconds": cost.seconds,
        "examples_per_second": cost.examples / max(cost.seconds, 1e-9),
        "data_wait_fraction": cost.wait_seconds / max(cost.seconds, 1e-9),
        "learning_rate": cell.learning_rate,
        "head_learning_rate": testbed.training.head_learning_rate,
        "batch_size": testbed.training.batch_size,
        "micro_batch": micro.size,
        "devices": fabric.world_size,
        "encoder_cache": None if encoder is None else describe_cache(encoder, testbed.encodings),
    }
    per_example = cost_of_examples(cell, method, model, untouched, routes) if method.dynamic else None
    return Outcome(
        metrics=metrics,
        majority=task.majority_score(testbed.data),
        predictions=predictions,
        parameters=parameters,
        deployed_parameters=deployed,
        compute=compute,
        full_compute=full_compute,
        compute_per_example=per_example,
        routes=routes,
        training_memory=memory,
        training=learned,
        search=searched,
        warm_start=warm,
        tuned=best["tuned"],
        curve=curve,
        **_skipped(testbed),
    )


def _skipped(testbed: Testbed) -> dict[str, Any]:
    """Unreadable images and the examples left out because of them. Other tasks may use the same images."""
    files: set[str] = set()
    counts: dict[str, int] = {}
    for split, examples in testbed.data.splits.items():
        bad = [
            [path for path in map(os.fspath, example.images) if path in testbed.images.skipped]
            for example in examples
        ]
        files.update(path for paths in bad for path in paths)
        counts[split] = sum(map(bool, bad))
    names = tuple(sorted(Path(path).name for path in files))
    return {"skipped_files": names, "skipped_examples": counts}


def _train(
    cell: Cell,
    method: Method[Any],
    model: TaskModel,
    fabric: Fabric,
    ranks: Ranks,
    scratch: Path,
    progress: Progress,
    micro: MicroBatches,
    used: int,
) -> tuple[dict[str, Any], list[dict[str, float]], Cost]:
    """Train for all epochs; returns the chosen epoch with its tuned tensors, the curve, and the cost.

    used: examples of the budget that the search has seen; training starts that far into the epochs.
    """
    testbed, training = cell.testbed, cell.testbed.training
    batches = loader(testbed, "train", derived_seed(cell.seed, "order"), augmented=True, ranks=ranks)
    groups = method.parameter_groups(model.backbone)
    optimizer = build_optimizer(model, training, cell.learning_rate, training.head_learning_rate, groups)
    steps = len(batches)
    first = steps_of(used, len(batches.examples), training.batch_size, steps)
    total = training.epochs * steps - first
    schedule = build_schedule(optimizer, total, training.warmup)
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    state = State(wrapped, wrapped_optimizer, schedule, *divmod(first, steps))
    curve: list[dict[str, float]] = []
    best: dict[str, Any] = {"epoch": -1, "value": None, "tuned": {}}
    checkpoint = scratch / CHECKPOINT
    kept = on_first(fabric, lambda: load_checkpoint(checkpoint) if checkpoint.is_file() else None)
    if kept is not None:
        with restoring(checkpoint):
            restore_training(kept["training"], model, state, fabric)
            best, curve = kept["best"], kept["curve"]
            micro.resume(kept["micro_batch"])
        for figures in curve:
            progress.epoch(figures)
    validation = loader(testbed, "val", ranks=ranks)
    task = testbed.task
    progress.stage("train", training.epochs * len(batches.examples) - used)
    progress.advance(max(0, state.epoch * len(batches.examples) + state.step * training.batch_size - used))

    def save() -> None:
        training_now = training_state(model, state, fabric)
        content = {"training": training_now, "best": best, "curve": curve, "micro_batch": micro.size}
        on_first(fabric, lambda: save_checkpoint(checkpoint, content))
        on_first(
            fabric, lambda: keep_done(scratch, "train", (state.epoch + state.step / steps) / training.epochs)
        )

    saving = Saving(fabric, testbed.settings.device.checkpoint_minutes, save)
    while state.epoch < training.epochs:
        with optimized_blocks(model.backbone, training):
            loss = train_epoch(
                fabric,
                state,
                task,
                batches,
                before_step=lambda epoch, step: method.before_step(epoch * steps + step - first, total),
                after_step=lambda epoch, step: progress.advance(training.batch_size),
                regularizer=partial(method.weighted_regularizer, model.backbone),
                micro=micro,
                on_boundary=saving,
            )
        with cached_encoding(model.backbone, testbed.encodings, evaluation=True):
            saved = _partial_scores(cell, scratch, "validation", ranks, tuned_state(model))
            try:
                predictions = predict(fabric, wrapped, task, validation, partial=saved, micro=micro)
            except StopRequestedError:
                save()
                raise
        if state.cost.steps == 0:
            raise _unreadable(testbed, "train")
        score = on_first(fabric, partial(_primary_score, testbed, predictions))
        if state.epoch == first // steps:  # it may have begun in the middle
            loss *= steps / (steps - first % steps)
        state.next_epoch()
        curve.append({"epoch": state.epoch, "train_loss": loss, f"val_{task.primary_metric}": score})
        progress.epoch(curve[-1])
        better = best["value"] is None or (score > best["value"]) == task.higher_is_better
        if score == best["value"]:
            better = False
        if better or training.select == "last":
            best = {"epoch": state.epoch, "value": score, "tuned": tuned_state(model)}
        saving.now()
    return best, curve, state.cost


def steps_of(seen: int, examples: int, batch_size: int, steps: int) -> int:
    """How many optimiser steps into training one is after `seen` examples, to the nearest step.

    examples, steps: those of an epoch, whose last batch may be smaller than `batch_size`.
    """
    epochs, rest = divmod(seen, examples)
    return epochs * steps + min(steps, round(rest / batch_size))


def _training_memory(
    cell: Cell, method: Method[Any], model: TaskModel, fabric: Fabric, ranks: Ranks, micro: MicroBatches
) -> PeakMemory:
    """Peak bytes of live tensors over two training steps (the second has the optimiser's states)."""
    testbed, training = cell.testbed, cell.testbed.training
    task = testbed.task
    copied = copy.deepcopy(model).train()
    groups = method.parameter_groups(copied.backbone)
    optimizer = build_optimizer(copied, training, cell.learning_rate, training.head_learning_rate, groups)
    first = Ranks(0, ranks.world_size)  # whose share of a batch is the largest
    batches = (batch for batch in loader(testbed, "train", ranks=first) if len(batch))
    looked = list(islice(batches, 8))
    if not looked:
        raise _unreadable(testbed, "train")
    batch = max(looked, key=lambda batch: batch.inputs[0].input_ids.shape[1])

    def step() -> None:
        with optimized_blocks(copied.backbone, training):
            for _ in range(2):
                micro.backward(
                    fabric, copied, task, batch, partial(method.weighted_regularizer, copied.backbone)
                )
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    how = f"bytes of live tensors over two training steps of {len(batch)} examples, float32"
    if micro.size is not None and micro.size < len(batch):
        how += f", {micro.size} at a time"
    return peak_live_tensors(step, model_tensors(copied), how)


def _primary_score(testbed: Testbed, predictions: list[Prediction]) -> float:
    if not predictions:
        raise _unreadable(testbed, "val")
    return testbed.task.score(predictions)[testbed.task.primary_metric]


def _unreadable(testbed: Testbed, split: str) -> UserError:
    """All examples of a split are left out because of their images."""
    return UserError(
        f"{testbed.task.name}: no example of the {split} split has images that can be read; the first error: "
        f"{next(iter(testbed.images.skipped.values()), 'none')}."
    )


def _partial_scores(
    cell: Cell, scratch: Path, stage: str, ranks: Ranks, tuned: Mapping[str, Tensor]
) -> PartialScores | None:
    """Where an evaluation of a whole split saves finished scores; None for tasks evaluated by batch."""
    if not cell.testbed.task.evaluates_splits:
        return None
    name = f"scores-{stage}-{ranks.rank}.npz" if ranks.rank else f"scores-{stage}.npz"
    return PartialScores(scratch / name, digest_state(tuned, {"stage": stage, "cell": cell.id}))


def _report(
    cell: Cell,
    model: TaskModel,
    fabric: Fabric,
    ranks: Ranks,
    scratch: Path,
    progress: Progress,
    micro: MicroBatches,
    tuned: Mapping[str, Tensor],
) -> tuple[dict[str, list[Prediction]], dict[str, Mapping[str, float]]]:
    """Predictions and metrics of the finalised model on validation and test."""
    testbed, task = cell.testbed, cell.testbed.task
    wrapped = fabric.setup_module(model)
    predictions: dict[str, list[Prediction]] = {}
    metrics: dict[str, Mapping[str, float]] = {}
    for split in ("val", "test"):
        progress.stage(f"predict {split}", len(testbed.data.splits[split]))
        saved = _partial_scores(cell, scratch, split, ranks, tuned)
        batches = loader(testbed, split, ranks=ranks)
        predictions[split] = predict(fabric, wrapped, task, batches, progress.advance, saved, micro)
        if ranks.rank:
            continue
        if not predictions[split]:
            raise _unreadable(testbed, split)
        expected = {example.id for example in testbed.data.splits[split]}
        seen = [str(prediction["id"]) for prediction in predictions[split]]
        complete = len(seen) == len(expected) and set(seen) == expected
        if not complete and not testbed.settings.data.skip_bad_images:
            raise RuntimeError(f"{split}: {len(seen)} predictions for {len(expected)} examples")
        if all(prediction.get("score") is not None for prediction in predictions[split]):
            metrics[split] = task.score(predictions[split])
    return predictions, metrics
