"""Pre-training of the embedded backbones on generated scenes and captions.

Five objectives in one pass over a batch of fresh scenes. First half: words masked in true captions are
to be restored, and where only one is masked, the pooled class token is to name it too. Second half: captions
are to be told from negatives, some another scene's caption, some hard ones in which one word was changed;
and every word is to tell whether it is the changed one. Whole batch: each patch is to tell the colour, shape
and size of the thing whose centre it holds. Masked words and matching are ViLT's own objectives. Those about
changed words and patches are there because with the two alone learning stays at chance for tens of thousands
of scenes; the one about the pooled class token, because matching alone teaches it to carry nothing but yes or
no, and a few thousand examples of a task are too few to learn the rest. All heads but the matching one are
dropped afterwards.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.allocator import keep_freed_memory
from harness.backbones.base import BackboneOptions, Inputs, Processor
from harness.backbones.vilt import ViltBackbone
from harness.backbones.vilt_processor import ViltProcessor
from harness.errors import UserError
from tasks.mini.captions import caption, caption_words, falsify, join, true_clauses
from tasks.mini.patches import patch_labels
from tasks.mini.render import DARK, PLAIN, Style, render
from tasks.mini.world import COLORS, PRETRAINING, SHAPES, SIZES, Scene, sample_scene

IGNORED = -100
CHANGED_WEIGHT = 5.0
"""Weight of a changed word against the many unchanged ones."""
EMPTY_WEIGHT = 0.15
"""Weight of an empty patch against the few that hold something."""
FUNCTION_WORDS = frozenset(
    [
        "a",
        "and",
        "are",
        "at",
        "has",
        "here",
        "in",
        "is",
        "on",
        "only",
        "picture",
        "shown",
        "the",
        "there",
        "lies",
        "of",
        "side",
    ]
)


@dataclass(frozen=True)
class Recipe:
    """How an embedded backbone is pre-trained.

    steps: optimiser steps; each sees `batch_size` fresh scenes.
    processes: that share a batch and average their gradients: one core each is far better used than several
        by one process with a model this small. Each draws its own scenes, so the number changes the result.
    style: how scenes are drawn, `dark` or `plain` (`STYLES`).
    mask_probability: share of a caption's content words that is masked (function words: a third of it).
    single: share of the captions with masked words in which just one word, a content word, is masked.
    hard: share of the negatives that differ from a true caption in one word.
    warmup: share of the steps over which the learning rate rises; then it falls as a half cosine to 1 %.
    """

    steps: int = 3000
    batch_size: int = 64
    processes: int = 2
    style: str = "plain"
    learning_rate: float = 7e-4
    weight_decay: float = 0.01
    warmup: float = 0.05
    mask_probability: float = 0.3
    single: float = 0.6
    hard: float = 0.6
    seed: int = 20231


STYLES: dict[str, Style] = {"dark": DARK, "plain": PLAIN}

STAGES = (Recipe(steps=4400, style="dark", learning_rate=1e-3, single=0.0, seed=20230), Recipe())
"""Of `vilt-mini`, each going on from the weights of the one before with fresh heads and a fresh optimiser. Shapes
are learned on dark backgrounds; begun on all, they take more than twice as long."""


@dataclass(frozen=True)
class Scenes:
    """A batch of B scenes.

    words: `(B, L)` masked words' classes; single: `(B/2,)` the class of a caption's only masked word;
    matches: `(B/2,)` 1 where caption and scene match; changed: `(B/2, L)` 1 at the changed word, 0 at others;
    patches: `(B, P, 3)`. `IGNORED` where nothing is asked.
    """

    inputs: Inputs
    words: Tensor
    single: Tensor
    matches: Tensor
    changed: Tensor
    patches: Tensor


class CaptionedScenes:
    """A rank's share of the batches from step `start` on; step `k`'s depends on (seed, k, rank) only, so a run
    can be resumed at any step.
    """

    def __init__(
        self, recipe: Recipe, processor: Processor, mask_id: int, start: int = 0, rank: int = 0
    ) -> None:
        self.recipe, self.processor, self.mask_id = recipe, processor, mask_id
        self.start, self.rank = start, rank
        self.size = recipe.batch_size // recipe.processes
        self.style = STYLES[recipe.style]
        words = caption_words()
        self.classes = {_single_id(processor, word): index for index, word in enumerate(words)}
        content = {_single_id(processor, word) for word in words if word not in FUNCTION_WORDS}
        self.class_of_id = np.full(1 + max(self.classes), IGNORED, dtype=np.int64)
        self.mask_rate = np.zeros(len(self.class_of_id))
        for token, index in self.classes.items():
            self.class_of_id[token] = index
            self.mask_rate[token] = recipe.mask_probability * (1.0 if token in content else 1 / 3)
        self.is_content = np.isin(np.arange(len(self.class_of_id)), list(content))

    def __iter__(self) -> Iterator[Scenes]:
        for step in range(self.start, self.recipe.steps):
            yield self.batch(np.random.default_rng([self.recipe.seed, step, self.rank]))

    def batch(self, rng: np.random.Generator) -> Scenes:
        """One batch drawn from `rng`."""
        size, half = self.size, self.size // 2
        scenes = [sample_scene(rng, PRETRAINING) for _ in range(size)]
        texts = [caption(scene, rng) for scene in scenes[:half]]
        texts += [caption(scene, rng) for scene in scenes[half:]]
        originals = list(texts)
        truths = np.ones(size, dtype=np.int64)
        for row in range(half, size):
            if rng.random() < 0.5:
                texts[row], originals[row] = self._negative(scenes[row], scenes[row - 1], rng)
                truths[row] = 0
        images = np.stack([render(scene, self.style, rng) for scene in scenes])
        tokens = self.processor.tokenize(texts)
        longest = max(map(len, tokens))
        ids = np.full((size, longest), self.processor.pad_id, dtype=np.int64)
        targets = np.full((size, longest), IGNORED, dtype=np.int64)
        single = np.full(half, IGNORED, dtype=np.int64)
        for row, sequence in enumerate(tokens):
            ids[row, : len(sequence)] = sequence
            if row < half:
                known = np.asarray(sequence[1:-1])
                if rng.random() < self.recipe.single:
                    chosen = 1 + rng.choice(np.flatnonzero(self.is_content[known]), 1)
                    single[row] = self.class_of_id[ids[row, chosen[0]]]
                else:
                    chosen = 1 + np.flatnonzero(rng.random(len(known)) < self.mask_rate[known])
                if not len(chosen):
                    chosen = np.array([1 + int(rng.integers(len(known)))])
                targets[row, chosen] = self.class_of_id[ids[row, chosen]]
                ids[row, chosen] = self.mask_id
        input_ids = torch.from_numpy(ids)
        mask = input_ids != self.processor.pad_id
        pixels = self.processor.normalize(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
        changed = np.full((size - half, longest), IGNORED, dtype=np.int64)
        for row, original in enumerate(self.processor.tokenize(originals[half:])):
            sequence = tokens[half + row]
            if len(original) == len(sequence):
                changed[row, : len(sequence)] = np.not_equal(original, sequence)
        return Scenes(
            Inputs(input_ids, None if bool(mask.all()) else mask, pixels),
            torch.from_numpy(targets),
            torch.from_numpy(single),
            torch.from_numpy(truths[half:]),
            torch.from_numpy(changed),
            torch.from_numpy(np.stack([patch_labels(scene) for scene in scenes])),
        )

    def _negative(self, scene: Scene, other: Scene, rng: np.random.Generator) -> tuple[str, str]:
        """A caption that is false of `scene`, and the true one it was made from (a hopeless text if none)."""
        if rng.random() >= self.recipe.hard:
            for _ in range(10):
                borrowed = true_clauses(other, rng)
                if any(clause.fails(scene) for clause in borrowed):
                    return join(borrowed, rng), ""
        while True:
            true = true_clauses(scene, rng)
            false = falsify(true, scene, rng)
            if false is not None:
                wording = int(rng.integers(2**32))
                text, original = (join(clauses, np.random.default_rng(wording)) for clauses in (false, true))
                return text, original


def _single_id(processor: Processor, word: str) -> int:
    ids = processor.tokenize([word])[0]
    if len(ids) != 3:
        raise ValueError(f"'{word}' is not one token of the vocabulary")
    return ids[1]


class PretrainingModel(nn.Module):
    """A ViLT encoder with the five heads."""

    def __init__(self, backbone: ViltBackbone, words: int) -> None:
        super().__init__()
        width = backbone.width
        self.backbone = backbone
        self.word_head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, words)
        )
        self.single_head = nn.Linear(width, words)
        self.itm_score = nn.Linear(width, 2)
        self.changed_head = nn.Linear(width, 1)
        self.patch_sizes = (len(COLORS) + 1, len(SHAPES) + 1, len(SIZES) + 1)
        self.patch_head = nn.Linear(width, sum(self.patch_sizes))

    def forward(self, batch: Scenes) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Logits: masked words `(M, words)`, single ones by the class token `(B/2, words)`, matching `(B/2, 2)`,
        changed words `(B/2, L)`, patches `(B, P, …)`.
        """
        model = self.backbone.model
        streams = self.backbone.run_blocks(self.backbone.encode(batch.inputs))
        hidden = streams["joint"].hidden
        length = batch.inputs.input_ids.shape[1]
        masked = hidden[:, :length][batch.words != IGNORED]
        asked = slice(-len(batch.matches), None)
        pooled = self.backbone.pool(streams)
        single = self.single_head(pooled[: len(batch.single)])
        matches = self.itm_score(pooled[asked])
        changed = self.changed_head(model.layernorm(hidden[asked, :length]))[..., 0]
        patches = self.patch_head(model.layernorm(hidden[:, length + 1 :]))
        return self.word_head(model.layernorm(masked)), single, matches, changed, patches

    def losses(self, batch: Scenes) -> tuple[Tensor, dict[str, float]]:
        """The sum of the five losses, and losses and accuracies (percent) by name."""
        words, single, matches, changed, patches = self(batch)
        targets = batch.words[batch.words != IGNORED]
        word_loss = F.cross_entropy(words, targets)
        named = batch.single != IGNORED
        single_loss = F.cross_entropy(single[named], batch.single[named]) if named.any() else single.sum() * 0
        match_loss = F.cross_entropy(matches, batch.matches)
        asked = batch.changed != IGNORED
        is_changed = batch.changed[asked].float()
        changed_loss = (
            F.binary_cross_entropy_with_logits(
                changed[asked], is_changed, pos_weight=torch.tensor(CHANGED_WEIGHT)
            )
            if asked.any()  # a small share of a batch may hold borrowed captions only
            else changed.sum() * 0
        )
        parts = patches.split(self.patch_sizes, dim=-1)
        patch_losses = []
        for i, part in enumerate(parts):
            weight = torch.ones(part.shape[-1])
            weight[0] = EMPTY_WEIGHT
            patch_losses.append(F.cross_entropy(part.flatten(0, 1), batch.patches[..., i].flatten(), weight))
        patch_loss = torch.stack(patch_losses).mean()
        figures = {
            "word_loss": word_loss.item(),
            "single_loss": single_loss.item(),
            "match_loss": match_loss.item(),
            "changed_loss": changed_loss.item(),
            "patch_loss": patch_loss.item(),
            "word_accuracy": _percent(words.argmax(-1) == targets),
            "single_accuracy": _percent((single.argmax(-1) == batch.single)[named]) if named.any() else 0.0,
            "match_accuracy": _percent(matches.argmax(-1) == batch.matches),
        }
        found = (changed[asked] > 0)[is_changed > 0]
        figures["changed_recall"] = _percent(found) if len(found) else 0.0
        held = batch.patches[..., 0] > 0
        for i, attribute in enumerate(("color", "shape", "size")):
            right = parts[i].argmax(-1) == batch.patches[..., i]
            figures[f"patch_{attribute}_accuracy"] = _percent(right[held])
        return word_loss + single_loss + match_loss + changed_loss + patch_loss, figures


def _percent(right: Tensor) -> float:
    return 100.0 * right.float().mean().item()


BuildBackbone = Callable[[], ViltBackbone]
"""Makes a backbone with fresh weights; can be pickled."""
OnStep = Callable[[int, dict[str, float]], None]


def pretrain_in_stages(
    load: Callable[[BackboneOptions], ViltBackbone],
    stages: Sequence[Recipe],
    folder: Path,
    copied: Sequence[Path] = (),
    on_step: Callable[[int, int, dict[str, float]], None] = lambda stage, step, figures: None,
) -> dict[str, Any]:
    """Run `stages` one after the other, each in a folder of its own under `folder`; resumes where it stopped.

    load: makes the backbone, `weights="random"` first, then from the folder of the stage before.
    copied: files that belong beside the weights (configuration, vocabulary).
    on_step: gets the stage (from 0), the step (from 1) and its figures.
    Returns the report that is also written to `pretraining.json`: one entry a stage, and the last one's figures.
    """
    options = BackboneOptions(weights="random")
    reports = []
    for index, recipe in enumerate(stages):
        place = folder / f"stage-{index + 1}"
        if (place / "pretraining.json").is_file():
            reports.append(json.loads((place / "pretraining.json").read_text()))
        else:
            reports.append(pretrain(partial(load, options), recipe, place, partial(on_step, index)))
        for path in copied:
            (place / path.name).write_bytes(path.read_bytes())
        options = BackboneOptions(weights=str(place))
    report = {"stages": reports, "held_out": reports[-1]["held_out"]}
    for name in ("model.safetensors", "curve.csv", *(path.name for path in copied)):
        (folder / name).write_bytes((place / name).read_bytes())
    (folder / "pretraining.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def pretrain(
    build: BuildBackbone,
    recipe: Recipe,
    folder: Path,
    on_step: OnStep = lambda step, figures: None,
    checkpoint_every: int = 250,
) -> dict[str, Any]:
    """Pre-train a backbone and save it under `folder`; resumes from its checkpoint.

    Returns the final figures on held-out scenes. Writes `model.safetensors` (half precision),
    `pretraining.json` (recipe and figures) and `curve.csv`.

    Raises:
        UserError: the folder's checkpoint was made by another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.processes == 1:
        return _pretrain(build, recipe, folder, 0, on_step, checkpoint_every)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as meeting_place:
        address = f"file://{meeting_place}/ranks"
        others = [
            context.Process(target=_other_rank, args=(build, recipe, folder, rank, address), daemon=True)
            for rank in range(1, recipe.processes)
        ]
        threads = torch.get_num_threads()
        for process in others:
            process.start()
        try:
            _join(address, 0, recipe.processes)
            return _pretrain(build, recipe, folder, 0, on_step, checkpoint_every)
        finally:
            for process in others:
                process.terminate()
            dist.destroy_process_group()
            torch.set_num_threads(threads)


def _other_rank(build: BuildBackbone, recipe: Recipe, folder: Path, rank: int, address: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first rank's to handle
    keep_freed_memory()
    _join(address, rank, recipe.processes)
    _pretrain(build, recipe, folder, rank, lambda step, figures: None, 0)


def _join(address: str, rank: int, processes: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=processes)


def _pretrain(
    build: BuildBackbone, recipe: Recipe, folder: Path, rank: int, on_step: OnStep, checkpoint_every: int
) -> dict[str, Any]:
    """One rank's part; the first one also writes."""
    torch.manual_seed(recipe.seed)
    backbone = build()
    processor = backbone.processor
    assert isinstance(processor, ViltProcessor)
    mask_id = processor.tokenizer.token_to_id("[MASK]")
    model = PretrainingModel(backbone, len(caption_words())).train()
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
        state = torch.load(checkpoint, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise UserError(f"{checkpoint}: made by another recipe; delete it to begin anew.")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        step, seconds = state["step"], state["seconds"]
    stream = CaptionedScenes(recipe, processor, mask_id, step, rank)
    started = time.monotonic() - seconds
    with (folder / "curve.csv" if rank == 0 else Path(os.devnull)).open("a", newline="") as curve:
        writer = csv.writer(curve)
        for batch in stream:
            loss, figures = model.losses(batch)
            optimizer.zero_grad(set_to_none=False)
            loss.backward()
            _average_gradients(model)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if rank:
                continue
            seconds = time.monotonic() - started
            if step == 1:
                writer.writerow(["step", "seconds", *figures])
            if step % 10 == 0:
                writer.writerow([step, round(seconds, 1), *(round(value, 4) for value in figures.values())])
            on_step(step, figures)
            if step % checkpoint_every == 0 and step < recipe.steps:
                curve.flush()
                _save_checkpoint(checkpoint, recipe, model, optimizer, schedule, step, seconds)
    if rank:
        return {}
    figures = evaluate(model, recipe, processor, mask_id)
    state = {key: value.to(torch.float16).contiguous() for key, value in backbone.model.state_dict().items()}
    state |= {f"itm_score.fc.{k}": v.to(torch.float16) for k, v in model.itm_score.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    report = {
        "recipe": asdict(recipe),
        "scenes": recipe.steps * recipe.batch_size,
        "seconds": round(seconds),
        "held_out": {name: round(value, 3) for name, value in figures.items()},
    }
    (folder / "pretraining.json").write_text(json.dumps(report, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)
    return report


def _average_gradients(model: nn.Module) -> None:
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _save_checkpoint(
    path: Path, recipe: Recipe, model: Any, optimizer: Any, schedule: Any, step: int, seconds: float
) -> None:
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "recipe": asdict(recipe),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "step": step,
            "seconds": seconds,
        },
        partial,
    )
    partial.replace(path)


@torch.no_grad()
def evaluate(
    model: PretrainingModel, recipe: Recipe, processor: Processor, mask_id: int, batches: int = 32
) -> dict[str, float]:
    """Mean figures over scenes that no training step draws."""
    model.eval()
    stream = CaptionedScenes(recipe, processor, mask_id)
    totals: dict[str, float] = {}
    for index in range(batches):
        _, figures = model.losses(stream.batch(np.random.default_rng([recipe.seed + 1, index, 0])))
        for name, value in figures.items():
            totals[name] = totals.get(name, 0.0) + value / batches
    return totals


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
