"""Pre-training of METER's fusion on captioned photographs; the encoders stay frozen.

Objectives: masked words and image-text matching, as METER's, and the contrast of all images and captions of a batch
before the fusion (Li et al., ALBEF, NeurIPS 2021), which trains alone in the first steps. Its similarities choose the
negatives of matching: drawn uniformly at first, later more and more often those that are most like the true caption or
image. The image encoder's output is cached; masked captions are encoded anew in each step.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbones.inputs import Stream
from harness.backbones.meter.assembled import AssembledBackbone
from harness.backbones.meter.assembling import save_assembled
from harness.errors import UserError
from harness.files import read_json, write_atomically
from harness.pretrain.captions import Captioned, Features, Pairs, draw_pairs, read_captioned
from harness.training.checkpoint import load_checkpoint, save_checkpoint

FIGURES = (
    *("contrast_loss", "word_loss", "match_loss"),
    *("contrast_accuracy", "word_accuracy", "match_accuracy"),
)
"""Losses and accuracies (percent) of a step; the first steps have those of the contrast alone."""


@dataclass(frozen=True)
class FusionRecipe:
    """Hyper-parameters.

    steps: optimiser steps. batch_size: images per step, each with one caption.
    contrast_steps: of these the first ones, which train the projections by the contrast alone.
    contrast_batch_size: images per step in these.
    mask_probability: probability of masking a word.
    warmup: fraction of the steps with linear warm-up; the rate then decays as a half cosine to 1 %.
    """

    steps: int = 3000
    batch_size: int = 64
    contrast_steps: int = 300
    contrast_batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    mask_probability: float = 0.3
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    seed: int = 20260


class FusionModel(nn.Module):
    """A backbone with the heads of pre-training; only the fusion, the projections and the heads train.

    The head of masked words compares with the text encoder's own word embeddings.
    """

    def __init__(self, backbone: AssembledBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        model, width = backbone.model, backbone.width
        for encoder in (model.text_encoder, model.image_encoder):
            encoder.requires_grad_(False)
        self.words = model.text_encoder.get_input_embeddings().weight
        self.word_head = nn.Sequential(
            nn.Linear(width, self.words.shape[1]), nn.GELU(), nn.LayerNorm(self.words.shape[1])
        )
        self.word_bias = nn.Parameter(torch.zeros(len(self.words)))
        self.itm_score = nn.Linear(backbone.feature_dim, 2)
        self.log_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def losses(
        self, pairs: Pairs, features: Tensor, generator: torch.Generator, hardness: float | None = 1.0
    ) -> tuple[Tensor, dict[str, float]]:
        """The sum of the losses, then each loss and accuracy (percent) by name.

        features: output of the image encoder, `(B, S, C)`.
        hardness: of the negatives of matching, from 0 (drawn uniformly) to 1 (by their similarity). None: only the
            contrast.
        """
        model, count = self.backbone.model, len(pairs.images)
        image = model.image_projection(features)
        texts = [pairs.ids] if hardness is None else [pairs.ids, pairs.masked]
        with torch.no_grad():
            attention = pairs.mask.repeat(len(texts), 1).long()
            encoded = model.text_encoder(torch.cat(texts), attention).last_hidden_state
        text, *masked = model.text_projection(encoded).split(count)
        # Contrast
        weights = pairs.mask[..., None].float()
        of_text = F.normalize((text * weights).sum(1) / weights.sum(1), dim=-1)
        of_image = F.normalize(image.mean(1), dim=-1)
        similarity = (of_text @ of_image.T).float() * self.log_scale.clamp(max=np.log(100)).exp()
        own = torch.arange(count)
        contrast_loss = (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2
        figures = {
            "contrast_loss": contrast_loss.item(),
            "contrast_accuracy": _percent(similarity.argmax(-1) == own),
        }
        if hardness is None:
            return contrast_loss, figures
        # Masked words
        hidden = self._fuse(masked[0], pairs.mask, image)["text"].hidden[pairs.hidden]
        logits = F.linear(self.word_head(hidden), self.words, self.word_bias).float()
        targets = pairs.ids[pairs.hidden]
        word_loss = F.cross_entropy(logits, targets)
        # Matching: the first half is true, then false images, then false captions
        of_captions, of_images = draw_false(hardness * similarity.detach(), generator)
        pooled = self.backbone.pool(
            self._fuse(text[of_captions], pairs.mask[of_captions], image[of_images], queries=1)
        )
        matches = (of_captions == of_images).long()
        scores = self.itm_score(pooled).float()
        match_loss = F.cross_entropy(scores, matches)
        figures |= {
            "word_loss": word_loss.item(),
            "match_loss": match_loss.item(),
            "word_accuracy": _percent(logits.argmax(-1) == targets),
            "match_accuracy": _percent(scores.argmax(-1) == matches),
        }
        return word_loss + match_loss + contrast_loss, figures

    def _fuse(self, text: Tensor, mask: Tensor, image: Tensor, queries: int | None = None) -> Any:
        streams = {"text": Stream(text, mask, 0), "image": Stream(image, None, 1)}
        return self.backbone.run_blocks(streams, queries)


def draw_false(similarity: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers `(B,)` of the captions and of the images of B pairs: half are true, a quarter have another image, a
    quarter another caption.

    similarity: logits `(B, B)` of captions (rows) and images, by which the others are drawn.
    """
    count = len(similarity)
    half, quarter = count // 2, (count + count // 2) // 2
    captions, images = torch.arange(count), torch.arange(count)
    chances = similarity.masked_fill(torch.eye(count, dtype=torch.bool), -torch.inf)
    if half < quarter:
        images[half:quarter] = torch.multinomial(chances[half:quarter].softmax(1), 1, generator=generator)[
            :, 0
        ]
    if count > 1:
        captions[quarter:] = torch.multinomial(chances.T[quarter:].softmax(1), 1, generator=generator)[:, 0]
    return captions, images


def pretrain_fusion(
    backbone: AssembledBackbone,
    source: Path,
    recipe: FusionRecipe,
    folder: Path,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, figures: None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    save_every: int = 250,
) -> dict[str, Any]:
    """Pre-train the fusion on the training captions of a Karpathy file, and save the whole backbone in `folder`.

    source: the file, or its folder. on_step: called with the step (from 1) and its losses and accuracies by name.
    on_image: called with the numbers of images that are encoded and of all images.
    Every `save_every` steps weights and a checkpoint are saved, from which an interrupted run resumes.
    A finished run is kept.
    Returns recipe, duration, and losses and accuracies on the validation split, which `pretraining.json` holds too.

    Raises:
        UserError: the data cannot be read, or the folder's checkpoint belongs to another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    model = FusionModel(backbone)
    training, held_out = (
        read_captioned(source, backbone, *splits) for splits in (("train", "restval"), ("val",))
    )
    identity = {
        "recipe": asdict(recipe),
        "backbone": backbone.digest(),
        "processor": backbone.processor.describe(),
        "data": training.digest,
    }
    checkpoint, kept = folder / "checkpoint.pt", folder / "pretraining.json"
    if kept.is_file() and not checkpoint.is_file():
        report: dict[str, Any] = read_json(kept).value
        if report == {**report, **identity, "step": recipe.steps}:
            return report
    total = len(training.paths) + len(held_out.paths)
    cache = folder / "features"
    features = Features(backbone, training.paths, cache, lambda done: on_image(done, total))
    validation = Features(
        backbone, held_out.paths, cache, lambda done: on_image(len(training.paths) + done, total)
    )
    trained = model.trained()
    matrices = [p for p in trained.values() if p.ndim > 1]
    others = [p for p in trained.values() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    mask_id = mask_token(backbone)
    step, seconds = 0, 0.0
    if checkpoint.is_file():
        state = load_checkpoint(checkpoint)
        if state["identity"] != identity:
            raise UserError(f"{checkpoint}: belongs to another run; delete it to start over.")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(state["trained"][name])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
    started = time.monotonic() - seconds
    figures: dict[str, float] = {}

    def save() -> dict[str, Any]:
        heads = {f"itm_score.fc.{key}": value for key, value in model.itm_score.state_dict().items()}
        save_assembled(backbone, folder, heads)
        report = {
            **identity,
            "step": step,
            "seconds": round(time.monotonic() - started),
            "held_out": evaluate_fusion(model, held_out, validation, recipe, mask_id),
        }
        write_atomically(kept, (json.dumps(report, indent=2) + "\n").encode())
        return report

    with (folder / "curve.csv").open("a", newline="") as curve:
        writer = csv.DictWriter(curve, ("step", "seconds", *FIGURES))
        while step < recipe.steps:
            model.train()
            hardness = hardness_at(step, recipe)
            rng = np.random.default_rng([recipe.seed, step])
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
            torch.manual_seed(recipe.seed * 1_000_003 + step)  # of dropout, so that a resumed run is the same
            pairs = draw_pairs(
                training,
                recipe.contrast_batch_size if hardness is None else recipe.batch_size,
                recipe.mask_probability,
                mask_id,
                backbone.processor.pad_id,
                rng,
            )
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * rate_at(step, recipe)
            with autocast(recipe):
                loss, figures = model.losses(pairs, features[pairs.images], generator, hardness)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
            optimizer.step()
            step += 1
            seconds = time.monotonic() - started
            if step == 1:
                writer.writeheader()
            if step % 10 == 0:
                rounded = {name: round(value, 4) for name, value in figures.items()}
                writer.writerow({"step": step, "seconds": round(seconds, 1), **rounded})
                curve.flush()
            on_step(step, figures)
            if step % save_every == 0 and step < recipe.steps:
                save()
                saved = {
                    "identity": identity,
                    "trained": {name: parameter.detach() for name, parameter in trained.items()},
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "seconds": seconds,
                }
                save_checkpoint(checkpoint, saved)
    report = save()
    checkpoint.unlink(missing_ok=True)
    return report


def autocast(recipe: FusionRecipe) -> torch.autocast:
    """Context in which the losses are computed."""
    return torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16-mixed")


def hardness_at(step: int, recipe: FusionRecipe) -> float | None:
    """Hardness of the negatives of matching: grows from 0 to 1 behind the steps of the contrast alone (None)."""
    behind = step - recipe.contrast_steps
    return None if behind < 0 else behind / max(1, recipe.steps - recipe.contrast_steps)


def rate_at(step: int, recipe: FusionRecipe) -> float:
    """The learning rate of a step (from 0) as a share of the highest; it starts anew behind the contrast alone."""
    progress = hardness_at(step, recipe)
    if progress is None:
        progress = step / recipe.contrast_steps
    if progress < recipe.warmup:
        return progress / recipe.warmup
    return float(0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * (progress - recipe.warmup) / (1 - recipe.warmup))))


@torch.no_grad()
def evaluate_fusion(
    model: FusionModel,
    captioned: Captioned,
    features: Features,
    recipe: FusionRecipe,
    mask_id: int,
    batches: int = 8,
) -> dict[str, float]:
    """Mean losses and accuracies over batches of held-out images; the negatives of matching are drawn uniformly."""
    model.eval()
    totals: dict[str, float] = {}
    for index in range(batches):
        rng = np.random.default_rng([recipe.seed + 1, index])
        generator = torch.Generator().manual_seed(recipe.seed + index)
        pairs = draw_pairs(
            captioned,
            recipe.batch_size,
            recipe.mask_probability,
            mask_id,
            model.backbone.processor.pad_id,
            rng,
        )
        with autocast(recipe):
            _, figures = model.losses(pairs, features[pairs.images], generator, hardness=0.0)
        for name, value in figures.items():
            totals[name] = totals.get(name, 0.0) + value / batches
    return {name: round(value, 3) for name, value in totals.items()}


def mask_token(backbone: AssembledBackbone) -> int:
    """Id of the mask token.

    Raises:
        UserError: the vocabulary has none.
    """
    for token in ("[MASK]", "<mask>"):
        found: int | None = backbone.processor.tokenizer.token_to_id(token)
        if found is not None:
            return found
    raise UserError(f"{backbone.processor.vocabulary}: the vocabulary has neither [MASK] nor <mask>.")


def _percent(right: Tensor) -> float:
    return 100.0 * right.float().mean().item()
