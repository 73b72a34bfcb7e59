"""Pre-training of the embedded backbones on generated scenes and captions.

Four objectives in one pass over a batch of fresh scenes. First half: words masked in true captions are
to be restored. Second half: captions are to be told from negatives, some another scene's caption, some
hard ones in which one word was changed; and every word is to tell whether it is the changed one. Whole
batch: each patch is to tell the colour, shape and size of the thing whose centre it holds. Masked words
and matching are ViLT's own objectives; the other two are there because with those alone learning stays at
chance for tens of thousands of scenes. All heads but the matching one are dropped afterwards.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from harness.backbones.base import Inputs, Processor
from harness.backbones.vilt import ViltBackbone
from harness.backbones.vilt_processor import ViltProcessor
from tasks.mini.captions import caption, caption_words, falsify, join, true_clauses
from tasks.mini.patches import patch_labels
from tasks.mini.render import PLAIN, render
from tasks.mini.world import COLORS, PRETRAINING, SHAPES, SIZES, Scene, sample_scene

IGNORED = -100
CHANGED_WEIGHT = 5.0
"""Weight of a changed word against the many unchanged ones."""
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
    mask_probability: share of a caption's content words that is masked (function words: a third of it).
    hard: share of the negatives that differ from a true caption in one word.
    warmup: share of the steps over which the learning rate rises; then it falls as a half cosine to 1 %.
    """

    steps: int = 4400
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    mask_probability: float = 0.3
    hard: float = 0.6
    seed: int = 20230


@dataclass(frozen=True)
class Scenes:
    """A batch of B scenes.

    words: `(B, L)` masked words' classes; matches: `(B/2,)` 1 where caption and scene match; changed:
    `(B/2, L)` 1 at the changed word, 0 at others; patches: `(B, P, 3)`. `IGNORED` where nothing is asked.
    """

    inputs: Inputs
    words: Tensor
    matches: Tensor
    changed: Tensor
    patches: Tensor


class CaptionedScenes(IterableDataset[Scenes]):
    """An endless stream of batches; batch `k` depends on (seed, k) only, so a run can be resumed at any step."""

    def __init__(
        self, recipe: Recipe, processor: Processor, mask_id: int, start: int = 0, stop: int | None = None
    ):
        self.recipe, self.processor, self.mask_id = recipe, processor, mask_id
        self.start, self.stop = start, recipe.steps if stop is None else stop
        words = caption_words()
        self.classes = {_single_id(processor, word): index for index, word in enumerate(words)}
        content = {_single_id(processor, word) for word in words if word not in FUNCTION_WORDS}
        self.class_of_id = np.full(1 + max(self.classes), IGNORED, dtype=np.int64)
        self.mask_rate = np.zeros(len(self.class_of_id))
        for token, index in self.classes.items():
            self.class_of_id[token] = index
            self.mask_rate[token] = recipe.mask_probability * (1.0 if token in content else 1 / 3)

    def __iter__(self) -> Iterator[Scenes]:
        for step in range(self.start, self.stop):
            yield self.batch(np.random.default_rng([self.recipe.seed, step]))

    def batch(self, rng: np.random.Generator) -> Scenes:
        """One batch drawn from `rng`."""
        size, half = self.recipe.batch_size, self.recipe.batch_size // 2
        scenes = [sample_scene(rng, PRETRAINING) for _ in range(size)]
        texts = [caption(scene, rng) for scene in scenes[:half]]
        texts += [caption(scene, rng) for scene in scenes[half:]]
        originals = list(texts)
        truths = np.ones(size, dtype=np.int64)
        for row in range(half, size):
            if rng.random() < 0.5:
                texts[row], originals[row] = self._negative(scenes[row], scenes[row - 1], rng)
                truths[row] = 0
        images = np.stack([render(scene, PLAIN, rng) for scene in scenes])
        tokens = self.processor.tokenize(texts)
        longest = max(map(len, tokens))
        ids = np.full((size, longest), self.processor.pad_id, dtype=np.int64)
        targets = np.full((size, longest), IGNORED, dtype=np.int64)
        for row, sequence in enumerate(tokens):
            ids[row, : len(sequence)] = sequence
            if row < half:
                known = np.asarray(sequence[1:-1])
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
    """A ViLT encoder with the four heads."""

    def __init__(self, backbone: ViltBackbone, words: int) -> None:
        super().__init__()
        width = backbone.width
        self.backbone = backbone
        self.word_head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, words)
        )
        self.itm_score = nn.Linear(width, 2)
        self.changed_head = nn.Linear(width, 1)
        self.patch_sizes = (len(COLORS) + 1, len(SHAPES) + 1, len(SIZES) + 1)
        self.patch_head = nn.Linear(width, sum(self.patch_sizes))

    def forward(self, batch: Scenes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits: masked words `(M, words)`, matching `(B/2, 2)`, changed words `(B/2, L)`, patches `(B, P, …)`."""
        model = self.backbone.model
        streams = self.backbone.run_blocks(self.backbone.encode(batch.inputs))
        hidden = streams["joint"].hidden
        length = batch.inputs.input_ids.shape[1]
        masked = hidden[:, :length][batch.words != IGNORED]
        asked = slice(-len(batch.matches), None)
        matches = self.itm_score(self.backbone.pool(streams)[asked])
        changed = self.changed_head(model.layernorm(hidden[asked, :length]))[..., 0]
        patches = self.patch_head(model.layernorm(hidden[:, length + 1 :]))
        return self.word_head(model.layernorm(masked)), matches, changed, patches

    def losses(self, batch: Scenes) -> tuple[Tensor, dict[str, float]]:
        """The sum of the four losses, and losses and accuracies (percent) by name."""
        words, matches, changed, patches = self(batch)
        targets = batch.words[batch.words != IGNORED]
        word_loss = F.cross_entropy(words, targets)
        match_loss = F.cross_entropy(matches, batch.matches)
        asked = batch.changed != IGNORED
        is_changed = batch.changed[asked].float()
        changed_loss = F.binary_cross_entropy_with_logits(
            changed[asked], is_changed, pos_weight=torch.tensor(CHANGED_WEIGHT)
        )
        parts = patches.split(self.patch_sizes, dim=-1)
        patch_losses = [
            F.cross_entropy(part.flatten(0, 1), batch.patches[..., i].flatten())
            for i, part in enumerate(parts)
        ]
        patch_loss = torch.stack(patch_losses).mean()
        figures = {
            "word_loss": word_loss.item(),
            "match_loss": match_loss.item(),
            "changed_loss": changed_loss.item(),
            "patch_loss": patch_loss.item(),
            "word_accuracy": _percent(words.argmax(-1) == targets),
            "match_accuracy": _percent(matches.argmax(-1) == batch.matches),
        }
        found = (changed[asked] > 0)[is_changed > 0]
        figures["changed_recall"] = _percent(found) if len(found) else 0.0
        held = batch.patches[..., 0] > 0
        for i, attribute in enumerate(("color", "shape", "size")):
            right = parts[i].argmax(-1) == batch.patches[..., i]
            figures[f"patch_{attribute}_accuracy"] = _percent(right[held])
        return word_loss + match_loss + changed_loss + patch_loss, figures


def _percent(right: Tensor) -> float:
    return 100.0 * right.float().mean().item()


def pretrain(
    backbone: ViltBackbone,
    recipe: Recipe,
    folder: Path,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, figures: None,
    checkpoint_every: int = 250,
) -> dict[str, Any]:
    """Pre-train `backbone` (fresh weights) and save it under `folder`; resumes from its checkpoint.

    Returns the final figures on held-out scenes. Writes `model.safetensors` (half precision),
    `pretraining.json` (recipe and figures) and `curve.csv`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processor = backbone.processor
    assert isinstance(processor, ViltProcessor)
    mask_id = processor.tokenizer.token_to_id("[MASK]")
    torch.manual_seed(recipe.seed)
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
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        step, seconds = state["step"], state["seconds"]
    stream = CaptionedScenes(recipe, processor, mask_id, start=step)
    started = time.monotonic() - seconds
    with (folder / "curve.csv").open("a", newline="") as curve:
        writer = csv.writer(curve)
        for batch in DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=4):
            loss, figures = model.losses(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            seconds = time.monotonic() - started
            if step == 1:
                writer.writerow(["step", "seconds", *figures])
            if step % 10 == 0:
                writer.writerow([step, round(seconds, 1), *(round(value, 4) for value in figures.values())])
            on_step(step, figures)
            if step % checkpoint_every == 0 and step < recipe.steps:
                curve.flush()
                _save_checkpoint(checkpoint, model, optimizer, schedule, step, seconds)
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


def _save_checkpoint(
    path: Path, model: Any, optimizer: Any, schedule: Any, step: int, seconds: float
) -> None:
    partial = path.with_suffix(".partial")
    torch.save(
        {
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
    model: PretrainingModel, recipe: Recipe, processor: Processor, mask_id: int, batches: int = 16
) -> dict[str, float]:
    """Mean figures over scenes that no training step draws."""
    model.eval()
    stream = CaptionedScenes(recipe, processor, mask_id)
    totals: dict[str, float] = {}
    for index in range(batches):
        _, figures = model.losses(stream.batch(np.random.default_rng([recipe.seed + 1, index])))
        for name, value in figures.items():
            totals[name] = totals.get(name, 0.0) + value / batches
    return totals


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
