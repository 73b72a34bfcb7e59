"""A backbone with pre-training heads, and their losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbones.inputs import Inputs
from harness.backbones.meter.model import MeterBackbone
from harness.backbones.vilt.model import ViltBackbone
from harness.pretrain.recipe import Recipe
from harness.pretrain.scenes import IGNORED, CaptionedScenes, Scenes
from tasks.mini.world import COLORS, SHAPES, SIZES

CHANGED_WEIGHT = 5.0
"""Weight of a changed word relative to an unchanged one, as unchanged words are many."""
EMPTY_WEIGHT = 0.15
"""Weight of an empty patch relative to one with an object, as empty patches are many."""
ATTRIBUTES = ("color", "shape", "size")

Captioned: TypeAlias = ViltBackbone | MeterBackbone
"""Backbones that are pre-trained on captions."""


@dataclass(frozen=True)
class States:
    """Hidden states of B image-text pairs with L text tokens and P patches.

    text: `(B, L, D)` and patches: `(B, P, D)`, both after the last block and before `norm`.
    pooled: `(B, feature_dim)`.
    encoded_patches: `(B, P, D)`, output of the image encoder; None if the backbone has none.
    """

    text: Tensor
    patches: Tensor
    norm: nn.Module
    pooled: Tensor
    encoded_patches: Tensor | None = None


def read_states(backbone: Captioned, inputs: Inputs) -> States:
    """Hidden states from one forward pass."""
    length = inputs.input_ids.shape[1]
    encoded = backbone.encode(inputs)
    streams = backbone.run_blocks(encoded)
    pooled = backbone.pool(streams)
    if isinstance(backbone, ViltBackbone):
        hidden = streams["joint"].hidden
        return States(hidden[:, :length], hidden[:, length + 1 :], backbone.model.layernorm, pooled)
    text, image = streams["text"].hidden, streams["image"].hidden
    return States(text, image[:, 1:], nn.Identity(), pooled, encoded["image"].hidden[:, 1:])


@dataclass(frozen=True)
class Logits:
    """Logits of all heads for a batch of B pairs with L text tokens, P patches and M masked words.

    words: `(M, words)`. single: a caption's only masked word, from the pooled feature, `(B/2, words)`.
    matches: `(B/2, 2)`. changed: `(B/2, L)`. patches: `(B, P, classes)`. encoded_patches: the same from the image
    encoder's output; None if the backbone has no image encoder.
    """

    words: Tensor
    single: Tensor
    matches: Tensor
    changed: Tensor
    patches: Tensor
    encoded_patches: Tensor | None


class PretrainingModel(nn.Module):
    """A backbone with one head per objective.

    words: number of classes of masked words.
    """

    def __init__(self, backbone: Captioned, words: int) -> None:
        super().__init__()
        width = backbone.width
        self.backbone = backbone
        self.word_head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, words)
        )
        self.single_head = nn.Linear(backbone.feature_dim, words)
        self.itm_score = nn.Linear(backbone.feature_dim, 2)
        self.changed_head = nn.Linear(width, 1)
        self.patch_sizes = (len(COLORS) + 1, len(SHAPES) + 1, len(SIZES) + 1)
        self.patch_head = nn.Linear(width, sum(self.patch_sizes))
        self.encoded_patch_head = (
            None if isinstance(backbone, ViltBackbone) else nn.Linear(width, sum(self.patch_sizes))
        )

    def batches(self, recipe: Recipe, start: int = 0, rank: int = 0) -> CaptionedScenes:
        """The training batches of one rank."""
        return CaptionedScenes(recipe, self.backbone.processor, start, rank)

    def state(self) -> dict[str, Tensor]:
        """The tensors to save: the backbone's and the matching head's."""
        head = {f"itm_score.fc.{name}": tensor for name, tensor in self.itm_score.state_dict().items()}
        return {**self.backbone.model.state_dict(), **head}

    def forward(self, batch: Scenes) -> Logits:
        """Logits of all heads."""
        states = read_states(self.backbone, batch.inputs)
        asked = slice(-len(batch.matches), None)
        head = self.encoded_patch_head
        return Logits(
            words=self.word_head(states.norm(states.text[batch.words != IGNORED])),
            single=self.single_head(states.pooled[: len(batch.single)]),
            matches=self.itm_score(states.pooled[asked]),
            changed=self.changed_head(states.norm(states.text[asked]))[..., 0],
            patches=self.patch_head(states.norm(states.patches)),
            encoded_patches=None if head is None else head(states.encoded_patches),
        )

    def losses(self, batch: Scenes) -> tuple[Tensor, dict[str, float]]:
        """The sum of all losses, then each loss and accuracy (percent) by name."""
        logits = self(batch)
        targets = batch.words[batch.words != IGNORED]
        named = batch.single != IGNORED
        asked = batch.changed != IGNORED
        is_changed = batch.changed[asked].float()
        losses = {
            "word_loss": F.cross_entropy(logits.words, targets),
            "single_loss": F.cross_entropy(logits.single[named], batch.single[named])
            if named.any()
            else logits.single.sum() * 0,
            "match_loss": F.cross_entropy(logits.matches, batch.matches),
            "changed_loss": F.binary_cross_entropy_with_logits(
                logits.changed[asked], is_changed, pos_weight=torch.tensor(CHANGED_WEIGHT)
            )
            if asked.any()  # a small batch may hold negatives of other scenes only
            else logits.changed.sum() * 0,
            "patch_loss": self._patch_loss(logits.patches, batch.patches),
        }
        if logits.encoded_patches is not None:
            losses["encoded_patch_loss"] = self._patch_loss(logits.encoded_patches, batch.patches)
        figures = {name: loss.item() for name, loss in losses.items()}
        figures |= {
            "word_accuracy": _percent(logits.words.argmax(-1) == targets),
            "single_accuracy": _percent((logits.single.argmax(-1) == batch.single)[named])
            if named.any()
            else 0.0,
            "match_accuracy": _percent(logits.matches.argmax(-1) == batch.matches),
        }
        found = (logits.changed[asked] > 0)[is_changed > 0]
        figures["changed_recall"] = _percent(found) if len(found) else 0.0
        held = batch.patches[..., 0] > 0
        for index, part in enumerate(logits.patches.split(self.patch_sizes, dim=-1)):
            right = part.argmax(-1) == batch.patches[..., index]
            figures[f"patch_{ATTRIBUTES[index]}_accuracy"] = _percent(right[held])
        return torch.stack(list(losses.values())).sum(), figures

    def _patch_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over colour, shape and size."""
        losses = []
        for index, part in enumerate(logits.split(self.patch_sizes, dim=-1)):
            weight = torch.ones(part.shape[-1])
            weight[0] = EMPTY_WEIGHT
            losses.append(F.cross_entropy(part.flatten(0, 1), labels[..., index].flatten(), weight))
        return torch.stack(losses).mean()


def _percent(right: Tensor) -> float:
    return 100.0 * right.float().mean().item()
