"""Pre-training of METER's fusion on captioned photographs; the encoders stay frozen.

Objectives: masked words and image-text matching, as METER's, and the contrast of all images and captions of a batch
before the fusion (Li et al., ALBEF, NeurIPS 2021), whose similarities also choose the negatives of matching: a caption
or image that is most like the true one is drawn most often. The image encoder's output is cached; masked captions are
encoded anew in each step.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbones.inputs import Stream
from harness.backbones.meter.assembled import AssembledBackbone
from harness.backbones.meter.assembling import save_assembled
from harness.errors import UserError
from harness.files import write_atomically
from harness.pretrain.captions import Captioned, Features, Pairs, draw_pairs, read_captioned
from harness.training.checkpoint import load_checkpoint, save_checkpoint

CONTRAST_WIDTH = 128
"""Size of the features whose similarity is compared."""


@dataclass(frozen=True)
class FusionRecipe:
    """Hyper-parameters.

    steps: optimiser steps. batch_size: images per step, each with one caption.
    mask_probability: probability of masking a word.
    warmup: fraction of the steps with linear warm-up; the rate then decays as a half cosine to 1 %.
    """

    steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup: float = 0.05
    mask_probability: float = 0.3
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
        self.contrast_text = nn.Linear(width, CONTRAST_WIDTH)
        self.contrast_image = nn.Linear(width, CONTRAST_WIDTH)
        self.log_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def losses(
        self, pairs: Pairs, features: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The sum of the losses, then each loss and accuracy (percent) by name.

        features: output of the image encoder, `(B, S, C)`.
        """
        model, count = self.backbone.model, len(pairs.images)
        image = model.image_projection(features)
        with torch.no_grad():
            twice = torch.cat([pairs.ids, pairs.masked])
            attention = torch.cat([pairs.mask, pairs.mask]).long()
            encoded = model.text_encoder(input_ids=twice, attention_mask=attention).last_hidden_state
        text, masked = model.text_projection(encoded).chunk(2)
        # Contrast
        weights = pairs.mask[..., None].float()
        of_text = F.normalize(self.contrast_text((text * weights).sum(1) / weights.sum(1)), dim=-1)
        of_image = F.normalize(self.contrast_image(image.mean(1)), dim=-1)
        similarity = of_text @ of_image.T * self.log_scale.clamp(max=np.log(100)).exp()
        own = torch.arange(count)
        contrast_loss = (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2
        # Masked words
        hidden = self._fuse(masked, pairs.mask, image)["text"].hidden[pairs.hidden]
        logits = F.linear(self.word_head(hidden), self.words, self.word_bias)
        targets = pairs.ids[pairs.hidden]
        word_loss = F.cross_entropy(logits, targets)
        # Matching: the first half is true, then false images, then false captions
        half, quarter = count // 2, (count + count // 2) // 2
        chances = similarity.detach().masked_fill(torch.eye(count, dtype=torch.bool), -torch.inf)
        of_captions, of_images = own.clone(), own.clone()
        if count > 1:
            false_images = chances[half:quarter].softmax(1)
            false_captions = chances.T[quarter:].softmax(1)
            if len(false_images):
                of_images[half:quarter] = torch.multinomial(false_images, 1, generator=generator)[:, 0]
            of_captions[quarter:] = torch.multinomial(false_captions, 1, generator=generator)[:, 0]
        pooled = self.backbone.pool(
            self._fuse(text[of_captions], pairs.mask[of_captions], image[of_images], queries=1)
        )
        matches = (of_captions == of_images).long()
        scores = self.itm_score(pooled)
        match_loss = F.cross_entropy(scores, matches)
        figures = {
            "word_loss": word_loss.item(),
            "match_loss": match_loss.item(),
            "contrast_loss": contrast_loss.item(),
            "word_accuracy": _percent(logits.argmax(-1) == targets),
            "match_accuracy": _percent(scores.argmax(-1) == matches),
            "contrast_accuracy": _percent(similarity.argmax(-1) == own),
        }
        return word_loss + match_loss + contrast_loss, figures

    def _fuse(self, text: Tensor, mask: Tensor, image: Tensor, queries: int | None = None) -> Any:
        streams = {"text": Stream(text, mask, 0), "image": Stream(image, None, 1)}
        return self.backbone.run_blocks(streams, queries)


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
    identity = {"recipe": asdict(recipe), "backbone": backbone.digest(), "data": training.digest}
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
    checkpoint = folder / "checkpoint.pt"
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

    def save() -> None:
        heads = {f"itm_score.fc.{key}": value for key, value in model.itm_score.state_dict().items()}
        save_assembled(backbone, folder, heads)
        report = {
            **identity,
            "step": step,
            "seconds": round(time.monotonic() - started),
            "held_out": evaluate_fusion(model, held_out, validation, recipe, mask_id),
        }
        write_atomically(folder / "pretraining.json", (json.dumps(report, indent=2) + "\n").encode())

    with (folder / "curve.csv").open("a", newline="") as curve:
        writer = csv.writer(curve)
        while step < recipe.steps:
            model.train()
            rng = np.random.default_rng([recipe.seed, step])
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
            torch.manual_seed(recipe.seed * 1_000_003 + step)  # of dropout, so that a resumed run is the same
            pairs = draw_pairs(
                training,
                recipe.batch_size,
                recipe.mask_probability,
                mask_id,
                backbone.processor.pad_id,
                rng,
            )
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * rate_at(step, recipe)
            loss, figures = model.losses(pairs, features[pairs.images], generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
            optimizer.step()
            step += 1
            seconds = time.monotonic() - started
            if step == 1:
                writer.writerow(["step", "seconds", *figures])
            if step % 10 == 0:
                writer.writerow([step, round(seconds, 1), *(round(value, 4) for value in figures.values())])
            on_step(step, figures)
            if step % save_every == 0 and step < recipe.steps:
                curve.flush()
                save()
                saved = {
                    "identity": identity,
                    "trained": {name: parameter.detach() for name, parameter in trained.items()},
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "seconds": seconds,
                }
                save_checkpoint(checkpoint, saved)
    save()
    checkpoint.unlink(missing_ok=True)
    report: dict[str, Any] = json.loads((folder / "pretraining.json").read_text())
    return report


def rate_at(step: int, recipe: FusionRecipe) -> float:
    """The learning rate of a step (from 0) as a share of the highest."""
    warmup = max(1, int(recipe.warmup * recipe.steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, recipe.steps - warmup)
    return float(0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * progress)))


@torch.no_grad()
def evaluate_fusion(
    model: FusionModel,
    captioned: Captioned,
    features: Features,
    recipe: FusionRecipe,
    mask_id: int,
    batches: int = 4,
) -> dict[str, float]:
    """Mean losses and accuracies over batches of held-out images."""
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
        _, figures = model.losses(pairs, features[pairs.images], generator)
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
