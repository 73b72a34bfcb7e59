"""One cell from start to record: search, train, choose the epoch, finalise, predict, measure."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from harness.digests import digest_state
from harness.experiment.plan import Cell, Testbed
from harness.files import write_atomically
from harness.measure.flops import ComputeCounts, count_forward
from harness.measure.live import model_tensors, peak_live_tensors
from harness.measure.memory import PeakMemory, track_peak_memory
from harness.measure.parameters import ParameterCounts, count_parameters
from harness.training.checkpoint import load_checkpoint, load_tuned_state, save_checkpoint, tuned_state
from harness.training.encoder_cache import cached_encoding, describe_cache
from harness.training.fabric import make_fabric
from harness.training.loop import Batches, Cost, State, predict, train_epoch
from harness.training.model import TaskModel
from harness.training.optim import build_optimizer, build_schedule
from harness.training.search import FabricSearchTrainer, cut
from harness.training.seeds import derived_seed, generator
from methods.base import Method
from methods.warm_start import WarmStart
from tasks.base import Prediction
from tasks.data.augment import AUGMENTATIONS
from tasks.data.loader import Loader
from tasks.data.resumable_scores import PartialScores

CHECKPOINT = "state.pt"


SEARCH_CHECKPOINT = "search.pt"


SEARCHED = "searched.pt"


DECISION = "search.json"


class Progress(Protocol):
    """Who is told how far a cell is."""

    def stage(self, name: str, total: int) -> None:
        """A new stage of `total` examples begins."""

    def advance(self, count: int) -> None:
        """`count` more examples are done."""

    def epoch(self, figures: Mapping[str, float]) -> None:
        """An epoch of training is over; a resumed cell tells its earlier ones again."""


@dataclass(frozen=True)
class Outcome:
    """Everything a cell has yielded, before it is written down.

    full_compute: of the backbone as loaded with the task's head, which is what full tuning deploys.
    skipped_files: names of images that could not be read; skipped_examples: left out for them, by split.
    """

    metrics: Mapping[str, Mapping[str, float]]
    majority: float | None
    predictions: Mapping[str, list[Prediction]]
    parameters: ParameterCounts
    deployed_parameters: ParameterCounts
    compute: ComputeCounts
    full_compute: ComputeCounts
    training_memory: PeakMemory
    training: Mapping[str, Any]
    search: Mapping[str, Any] | None
    tuned: Mapping[str, Tensor]
    curve: list[dict[str, float]]
    skipped_files: tuple[str, ...]
    skipped_examples: Mapping[str, int]


def loader(
    testbed: Testbed,
    split: str,
    seed: int | None = None,
    examples: Any = None,
    augmented: bool = False,
) -> Batches:
    """Batches of a split; shuffled by `seed` if there is one. Augmented are those that are trained on."""
    data = testbed.settings.data
    augment = AUGMENTATIONS[data.augment] if augmented else None
    found = Loader(
        testbed.data.splits[split] if examples is None else examples,
        testbed.task,
        testbed.backbone.processor,
        testbed.training.batch_size,
        seed=0 if seed is None else seed,
        shuffle=seed is not None,
        workers=data.workers,
        cache=testbed.images,
        skip_bad_images=data.skip_bad_images,
        augment=augment,
        # Augmented images do not come again, so that keeping what is encoded of them is no use.
        key_images=testbed.encodings is not None and augment is None,
    )
    if split != "train":
        return found
    batches: Batches = testbed.task.training_batches(found, 0 if seed is None else seed)
    return batches


def adapted_model(cell: Cell, method: Method[Any]) -> TaskModel:
    """A fresh backbone, adapted, with a fresh head; everything that trains is marked."""
    testbed = cell.testbed
    backbone = testbed.fresh_backbone()
    method.adapt(backbone, generator(cell.seed, "initialisation of the method"))
    backbone.pooled_token_only = method.per_token
    head = testbed.task.build_head(backbone, generator(cell.seed, "initialisation of the head"))
    for parameter in [*backbone.common_parameters(), *head.parameters()]:
        parameter.requires_grad_(True)
    return TaskModel(testbed.task, backbone, head)


def run_cell(cell: Cell, scratch: Path, progress: Progress) -> Outcome:
    """Run a cell; goes on from the last epoch that `scratch` holds."""
    testbed = cell.testbed
    task = testbed.task
    method = cell.method()
    fabric = make_fabric(testbed.settings)
    torch.manual_seed(derived_seed(cell.seed, "dropout"))
    scratch.mkdir(parents=True, exist_ok=True)
    search = _search(cell, method, fabric, scratch, progress) if method.searches else None
    if search is not None:
        method.decide(search["decision"])
    model = adapted_model(cell, method)
    if search is not None and isinstance(method, WarmStart):
        start = method.warm_start(model.backbone, load_checkpoint(scratch / SEARCHED))
        if start:
            load_tuned_state(model, start)
    parameters = count_parameters(model.backbone, model.head, method.method_modules(model.backbone))
    memory = None if fabric.device.type == "cuda" else _training_memory(cell, model)
    with cached_encoding(model.backbone, testbed.encodings) as encoder:
        if memory is None:
            with track_peak_memory(fabric.device) as tracker:
                best, curve, cost = _train(cell, model, fabric, scratch, progress)
            memory = tracker.result
        else:
            best, curve, cost = _train(cell, model, fabric, scratch, progress)
    load_tuned_state(model, best["tuned"])
    method.finalize(model.backbone)
    model.requires_grad_(False)
    deployed = count_parameters(model.backbone, model.head, method.method_modules(model.backbone))
    tuned = {name.removeprefix("backbone.") for name in best["tuned"]}
    with cached_encoding(model.backbone, testbed.encodings, evaluation=True, tuned=tuned):
        predictions, metrics = _report(cell, model, fabric, scratch, progress, best["tuned"])
    size = testbed.measured_input
    compute = count_forward(
        task, model.backbone, model.head, method, image_size=size.image_size, text_length=size.text_length
    )
    untouched = testbed.fresh_backbone().to(fabric.device)
    full_compute = count_forward(
        task, untouched, model.head, None, image_size=size.image_size, text_length=size.text_length
    )
    learned = {
        "epochs": testbed.training.epochs,
        "best_epoch": best["epoch"],
        "steps": cost.steps,
        "seconds": cost.seconds,
        "examples_per_second": cost.examples / max(cost.seconds, 1e-9),
        "data_wait_fraction": cost.wait_seconds / max(cost.seconds, 1e-9),
        "learning_rate": cell.learning_rate,
        "head_learning_rate": testbed.training.head_learning_rate,
        "batch_size": testbed.training.batch_size,
        "encoder_cache": None if encoder is None else describe_cache(encoder, testbed.encodings),
    }
    if search is not None:
        search["share"] = search["seconds"] / (search["seconds"] + cost.seconds)
    return Outcome(
        metrics=metrics,
        majority=task.majority_score(testbed.data),
        predictions=predictions,
        parameters=parameters,
        deployed_parameters=deployed,
        compute=compute,
        full_compute=full_compute,
        training_memory=memory,
        training=learned,
        search=search,
        tuned=best["tuned"],
        curve=curve,
        **_skipped(testbed),
    )


def _skipped(testbed: Testbed) -> dict[str, Any]:
    """What was left out because an image could not be read. The images may be other tasks' too."""
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


def _search(
    cell: Cell, method: Method[Any], fabric: Fabric, scratch: Path, progress: Progress
) -> dict[str, Any]:
    """The method's decision; read from `scratch` if an earlier try got that far."""
    done = scratch / DECISION
    if done.is_file():
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    testbed = cell.testbed
    backbone = testbed.fresh_backbone()
    backbone.pooled_token_only = method.per_token
    head = testbed.task.build_head(backbone, generator(cell.seed, "initialisation of the head"))
    kept, held = cut(
        testbed.data.splits["train"], method.search_holdout, derived_seed(cell.seed, "search split")
    )
    checkpoint = scratch / SEARCH_CHECKPOINT
    trainer = FabricSearchTrainer(
        fabric,
        testbed.task,
        backbone,
        head,
        loader(testbed, "train", derived_seed(cell.seed, "search order"), kept, augmented=True),
        loader(testbed, "train", derived_seed(cell.seed, "reward order"), held) if held else None,
        testbed.training,
        cell.learning_rate,
        testbed.training.head_learning_rate,
        generator(cell.seed, "search"),
        progress.advance,
        load_checkpoint(checkpoint) if checkpoint.is_file() else None,
        lambda state: save_checkpoint(checkpoint, state),
        partial(cached_encoding, store=testbed.encodings),
    )
    progress.stage("search", int(getattr(method.options, "search_epochs", 1)) * len(kept))
    decision = method.search(trainer)
    found = {
        "seconds": trainer.seconds,
        "training_examples": len(kept),
        "reward_examples": len(held),
        "decision": decision,
    }
    if isinstance(method, WarmStart):
        save_checkpoint(scratch / SEARCHED, tuned_state(TaskModel(testbed.task, backbone, head)))
    write_atomically(done, json.dumps(found).encode())
    checkpoint.unlink(missing_ok=True)
    return found


def _train(
    cell: Cell, model: TaskModel, fabric: Fabric, scratch: Path, progress: Progress
) -> tuple[dict[str, Any], list[dict[str, float]], Cost]:
    """Train for all epochs; returns the chosen epoch with its tuned tensors, the curve, and the cost."""
    testbed, training = cell.testbed, cell.testbed.training
    batches = loader(testbed, "train", derived_seed(cell.seed, "order"), augmented=True)
    optimizer = build_optimizer(model, training, cell.learning_rate, testbed.training.head_learning_rate)
    schedule = build_schedule(optimizer, training.epochs * len(batches), training.warmup)
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    state = State(wrapped, wrapped_optimizer, schedule)
    curve: list[dict[str, float]] = []
    best: dict[str, Any] = {"epoch": -1, "value": None, "tuned": {}}
    checkpoint = scratch / CHECKPOINT
    if checkpoint.is_file():
        best, curve = _restore(checkpoint, model, state)
        for figures in curve:
            progress.epoch(figures)
    validation = loader(testbed, "val")
    task = testbed.task
    progress.stage("train", training.epochs * len(batches.examples))
    progress.advance(state.epoch * len(batches.examples))
    while state.epoch < training.epochs:
        loss = train_epoch(
            fabric, state, task, batches, after_step=lambda e, s: progress.advance(training.batch_size)
        )
        with cached_encoding(model.backbone, testbed.encodings, evaluation=True):
            saved = _partial_scores(cell, scratch, "validation", tuned_state(model))
            predictions = predict(fabric, wrapped, task, validation, partial=saved)
        score = task.score(predictions)[task.primary_metric]
        curve.append({"epoch": state.epoch, "train_loss": loss, f"val_{task.primary_metric}": score})
        progress.epoch(curve[-1])
        better = best["value"] is None or (score > best["value"]) == task.higher_is_better
        if score == best["value"]:
            better = False
        if better or training.select == "last":
            best = {"epoch": state.epoch, "value": score, "tuned": tuned_state(model)}
        save_checkpoint(checkpoint, _everything(model, state, best, curve))
    return best, curve, state.cost


def _training_memory(cell: Cell, model: TaskModel) -> PeakMemory:
    """Peak bytes of live tensors over two training steps (the second has the optimiser's states)."""
    testbed, training = cell.testbed, cell.testbed.training
    task = testbed.task
    copied = copy.deepcopy(model).train()
    optimizer = build_optimizer(copied, training, cell.learning_rate, testbed.training.head_learning_rate)
    batch = max(islice(loader(testbed, "train"), 8), key=lambda batch: batch.inputs[0].input_ids.shape[1])
    if batch.targets is None:
        raise ValueError("a training batch has no targets")
    targets = batch.targets

    def step() -> None:
        for _ in range(2):
            task.loss(copied(batch), targets).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    how = f"bytes of live tensors over two training steps of {len(batch)} examples, float32"
    return peak_live_tensors(step, model_tensors(copied), how)


def _everything(model: nn.Module, state: State, best: dict[str, Any], curve: Any) -> dict[str, Any]:
    return {
        "tuned": tuned_state(model),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "epoch": state.epoch,
        "cost": asdict(state.cost),
        "best": best,
        "curve": curve,
        "random": torch.random.get_rng_state(),
    }


def _restore(
    checkpoint: Path, model: nn.Module, state: State
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    saved = load_checkpoint(checkpoint)
    load_tuned_state(model, saved["tuned"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.schedule.load_state_dict(saved["schedule"])
    state.epoch = saved["epoch"]
    state.cost = Cost(**saved["cost"])
    torch.random.set_rng_state(saved["random"])
    return saved["best"], saved["curve"]


def _partial_scores(
    cell: Cell, scratch: Path, stage: str, tuned: Mapping[str, Tensor]
) -> PartialScores | None:
    """Where an evaluation of a whole split saves what it has done; None for other tasks."""
    if not cell.testbed.task.evaluates_splits:
        return None
    return PartialScores(
        scratch / f"scores-{stage}.npz", digest_state(tuned, {"stage": stage, "cell": cell.id})
    )


def _report(
    cell: Cell,
    model: TaskModel,
    fabric: Fabric,
    scratch: Path,
    progress: Progress,
    tuned: Mapping[str, Tensor],
) -> tuple[dict[str, list[Prediction]], dict[str, Mapping[str, float]]]:
    """Predictions and metrics of the finalised model on validation and test."""
    testbed, task = cell.testbed, cell.testbed.task
    wrapped = fabric.setup_module(model)
    predictions: dict[str, list[Prediction]] = {}
    metrics: dict[str, Mapping[str, float]] = {}
    for split in ("val", "test"):
        progress.stage(f"predict {split}", len(testbed.data.splits[split]))
        saved = _partial_scores(cell, scratch, split, tuned)
        batches = loader(testbed, split)
        predictions[split] = predict(fabric, wrapped, task, batches, progress.advance, saved)
        expected = {example.id for example in testbed.data.splits[split]}
        seen = [str(prediction["id"]) for prediction in predictions[split]]
        complete = len(seen) == len(expected) and set(seen) == expected
        if not complete and not testbed.settings.data.skip_bad_images:
            raise RuntimeError(f"{split}: {len(seen)} predictions for {len(expected)} examples")
        if all(prediction.get("score") is not None for prediction in predictions[split]):
            metrics[split] = task.score(predictions[split])
    return predictions, metrics


def deployed_model(
    cell: Cell, tuned: Mapping[str, Tensor] | None, decision: Mapping[str, Any] | None
) -> TaskModel:
    """The finalised model of a finished cell, built again from its tuned weights and decision.

    Without tuned weights it has fresh ones: the same shapes and cost, other outputs.
    """
    method = cell.method()
    if decision is not None:
        method.decide(dict(decision))
    model = adapted_model(cell, method)
    if tuned is not None:
        load_tuned_state(model, dict(tuned))
    method.finalize(model.backbone)
    return model.requires_grad_(False).eval()
