"""Pre-training loop over stages and steps. An interrupted run resumes from its last checkpoint."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import save
from torch import nn

from harness.backbones.base import BackboneOptions
from harness.backbones.llava.model import LlavaBackbone
from harness.errors import UserError
from harness.files import read_json, write_atomically
from harness.pretrain.dialogues import DialogueModel
from harness.pretrain.launch import OnStep, launch
from harness.pretrain.model import Captioned, PretrainingModel
from harness.pretrain.recipe import Recipe
from harness.training.checkpoint import load_checkpoint, save_checkpoint
from tasks.mini.captions import caption_words

Pretrainable: TypeAlias = Captioned | LlavaBackbone
"""Backbones that have pre-training objectives."""

BuildBackbone = Callable[[], Pretrainable]
"""Builds the backbone to train. Must be picklable."""


def pretrain_in_stages(
    load: Callable[[BackboneOptions], Pretrainable],
    stages: Sequence[Recipe],
    folder: Path,
    copied: Sequence[Path] = (),
    on_step: Callable[[int, int, dict[str, float]], None] = lambda stage, step, figures: None,
) -> dict[str, Any]:
    """Run `stages` one after the other, each in its own folder under `folder`.

    load: loads the backbone, first with `weights="random"`, then from the previous stage's folder.
    copied: files to copy beside the weights (configuration, vocabulary).
    on_step: called with the stage (from 0), the step (from 1) and its losses and accuracies by name.
    Finished stages are kept, and an interrupted one resumes from its checkpoint.
    Returns the report that is also written to `pretraining.json`: one entry per stage, and the last stage's
    held-out losses and accuracies.
    """
    options = BackboneOptions(weights="random")
    reports = []
    for index, recipe in enumerate(stages):
        place = folder / f"stage-{index + 1}"
        if (place / "pretraining.json").is_file():
            reports.append(read_json(place / "pretraining.json").value)
        else:
            reports.append(pretrain(partial(load, options), recipe, place, partial(on_step, index)))
        for path in copied:
            write_atomically(place / path.name, path.read_bytes())
        options = BackboneOptions(weights=str(place))
    report = {"stages": reports, "held_out": reports[-1]["held_out"]}
    for name in ("model.safetensors", "curve.csv", *(path.name for path in copied)):
        write_atomically(folder / name, (place / name).read_bytes())
    write_atomically(folder / "pretraining.json", (json.dumps(report, indent=2) + "\n").encode())
    return report


def pretrain(
    build: BuildBackbone,
    recipe: Recipe,
    folder: Path,
    on_step: OnStep = lambda step, figures: None,
    checkpoint_every: int = 250,
) -> dict[str, Any]:
    """Pre-train a backbone and save it in `folder`, resuming from the folder's checkpoint if there is one.

    Returns recipe, duration, and losses and accuracies on held-out scenes. Writes `model.safetensors` (half precision),
    `pretraining.json` (what is returned) and `curve.csv`.

    Raises:
        UserError: the folder's checkpoint belongs to another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train = partial(_pretrain, build, recipe, folder, checkpoint_every)
    return launch(train, recipe.processes, on_step)


def _pretrain(
    build: BuildBackbone, recipe: Recipe, folder: Path, checkpoint_every: int, fabric: Fabric, on_step: OnStep
) -> dict[str, Any]:
    """Pre-training in one process; only rank 0 writes files."""
    torch.manual_seed(recipe.seed)
    backbone = build()
    model = pretraining_model(backbone).train()
    optimizer = torch.optim.AdamW(
        _decay_groups(model, recipe.weight_decay), lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True
    )
    warmup = max(1, int(recipe.warmup * recipe.steps))

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, recipe.steps - warmup)
        return float(0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * min(1.0, progress))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    step, seconds = 0, 0.0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.is_file():
        state = load_checkpoint(checkpoint)
        if state["recipe"] != asdict(recipe):
            raise UserError(f"{checkpoint}: belongs to another recipe; delete it to start over.")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        step, seconds = state["step"], state["seconds"]
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    wrapped.mark_forward_method("losses")
    stream = model.batches(recipe, step, fabric.global_rank)
    started = time.monotonic() - seconds
    with (folder / "curve.csv" if fabric.is_global_zero else Path(os.devnull)).open("a", newline="") as curve:
        writer = csv.writer(curve)
        for batch in stream:
            loss, figures = wrapped.losses(batch)
            wrapped_optimizer.zero_grad(set_to_none=False)
            fabric.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            wrapped_optimizer.step()
            schedule.step()
            step += 1
            if not fabric.is_global_zero:
                continue
            seconds = time.monotonic() - started
            if step == 1:
                writer.writerow(["step", "seconds", *figures])
            if step % 10 == 0:
                writer.writerow([step, round(seconds, 1), *(round(value, 4) for value in figures.values())])
            on_step(step, figures)
            if step % checkpoint_every == 0 and step < recipe.steps:
                curve.flush()
                saved = {
                    "recipe": asdict(recipe),
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "step": step,
                    "seconds": seconds,
                }
                save_checkpoint(checkpoint, saved)
    if not fabric.is_global_zero:
        return {}
    figures = evaluate(model, recipe)
    state = {key: value.to(torch.float16).contiguous() for key, value in model.state().items()}
    write_atomically(folder / "model.safetensors", save(state))
    report = {
        "recipe": asdict(recipe),
        "scenes": recipe.steps * recipe.batch_size,
        "seconds": round(seconds),
        "held_out": {name: round(value, 3) for name, value in figures.items()},
    }
    write_atomically(folder / "pretraining.json", (json.dumps(report, indent=2) + "\n").encode())
    checkpoint.unlink(missing_ok=True)
    return report


def pretraining_model(backbone: Pretrainable) -> PretrainingModel | DialogueModel:
    """A backbone with its objectives."""
    if isinstance(backbone, LlavaBackbone):
        return DialogueModel(backbone)
    return PretrainingModel(backbone, len(caption_words()))


@torch.no_grad()
def evaluate(model: PretrainingModel | DialogueModel, recipe: Recipe, batches: int = 32) -> dict[str, float]:
    """Mean losses and accuracies over scenes that no training step draws."""
    model.eval()
    stream: Any = model.batches(recipe)
    totals: dict[str, float] = {}
    for index in range(batches):
        _, figures = model.losses(stream.batch(np.random.default_rng([recipe.seed + 1, index, 0])))
        for name, value in figures.items():
            totals[name] = totals.get(name, 0.0) + value / batches
    return totals


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
