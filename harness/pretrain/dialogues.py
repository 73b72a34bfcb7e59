"""Pre-training of the embedded LLaVA: the answers of dialogues about generated scenes, token by token.

As in LLaVA's own pre-training, the image encoder comes from elsewhere, here from `meter-mini`, and is not trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbones.base import BackboneOptions
from harness.backbones.inputs import Inputs
from harness.backbones.llava.loading import load_llava_mini
from harness.backbones.llava.model import LlavaBackbone
from harness.backbones.llava.processor import LlavaProcessor
from harness.backbones.meter.loading import load_meter_mini
from harness.pretrain.recipe import STYLES, Recipe
from harness.pretrain.scenes import IGNORED, Drawn
from tasks.mini.dialogues import KINDS, sample_turn
from tasks.mini.render import render
from tasks.mini.world import PRETRAINING, sample_scene


def load_with_image_encoder(options: BackboneOptions) -> LlavaBackbone:
    """`llava-mini`; where its weights are random, the image encoder is that of `meter-mini`."""
    backbone = load_llava_mini(options)
    if options.weights == "random":
        encoder = load_meter_mini(replace(options, weights=None)).model.image_encoder
        tower = backbone.model.model.vision_tower.vision_model
        tower.load_state_dict({k: v for k, v in encoder.state_dict().items() if k in tower.state_dict()})
    return backbone


@dataclass(frozen=True)
class Dialogues:
    """A batch of B dialogues of up to T tokens, image tokens included.

    inputs: the tokens, padded on the right, without a mask: under causal attention padding changes nothing before it.
    targets: the next token where it belongs to an answer, else `IGNORED`, `(B, T)`.
    kinds: place in `KINDS` of the turn that each target belongs to, `(B, T)`.
    """

    inputs: Inputs
    targets: Tensor
    kinds: Tensor


class SceneDialogues(Drawn[Dialogues]):
    """Dialogues about one scene each."""

    def __init__(self, recipe: Recipe, backbone: LlavaBackbone, start: int = 0, rank: int = 0) -> None:
        super().__init__(recipe, start, rank)
        self.processor: LlavaProcessor = backbone.processor
        self.place = self.processor.image_position
        self.patches = backbone.image_end - self.place

    def batch(self, rng: np.random.Generator) -> Dialogues:
        """Draw one batch."""
        scenes = [sample_scene(rng, PRETRAINING) for _ in range(self.size)]
        images = np.stack([render(scene, STYLES[self.recipe.style], rng) for scene in scenes])
        rows: list[tuple[list[int], list[int]]] = []
        for scene in scenes:
            ids: list[int] = []
            kinds: list[int] = []  # -1 where a token is no answer's
            while True:
                turn = sample_turn(scene, rng)
                asked = self.processor.turn_ids(turn.question, first=not ids)
                answer = self.processor.answer_ids(turn.answer)
                if ids and len(ids) + len(asked) + len(answer) > self.recipe.dialogue_tokens:
                    break
                ids += asked + answer
                kinds += [-1] * len(asked) + [KINDS.index(turn.kind)] * len(answer)
            rows.append((ids, kinds))
        longest = max(len(ids) for ids, _ in rows)
        tokens = np.full((self.size, longest), self.processor.pad_id, dtype=np.int64)
        shape = self.size, longest + self.patches
        targets, of_kind = np.full(shape, IGNORED, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
        for row, (ids, kinds) in enumerate(rows):
            tokens[row, : len(ids)] = ids
            answers = np.flatnonzero(np.asarray(kinds) >= 0)
            targets[row, answers + self.patches - 1] = np.asarray(ids)[answers]
            of_kind[row, answers + self.patches - 1] = np.asarray(kinds)[answers]
        pixels = self.processor.normalize(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
        inputs = Inputs(torch.from_numpy(tokens), None, pixels)
        return Dialogues(inputs, torch.from_numpy(targets), torch.from_numpy(of_kind))


class DialogueModel(nn.Module):
    """The embedded LLaVA with the loss of dialogues; it needs no heads beside its own."""

    def __init__(self, backbone: LlavaBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        backbone.model.model.vision_tower.requires_grad_(False)

    def batches(self, recipe: Recipe, start: int = 0, rank: int = 0) -> SceneDialogues:
        """The training batches of one rank."""
        return SceneDialogues(recipe, self.backbone, start, rank)

    def state(self) -> dict[str, Tensor]:
        """The tensors to save."""
        return self.backbone.model.state_dict()  # type: ignore[no-any-return]

    def losses(self, batch: Dialogues) -> tuple[Tensor, dict[str, float]]:
        """Mean cross-entropy over the answers' tokens; also the accuracy of tokens (percent) by kind of turn."""
        answered = batch.targets != IGNORED
        states = self.backbone.token_states(batch.inputs)[answered]
        targets, kinds = batch.targets[answered], batch.kinds[answered]
        logits = self.backbone.vocabulary_logits(states)
        loss = F.cross_entropy(logits, targets)
        right = (logits.argmax(dim=-1) == targets)[targets != self.backbone.processor.end_ids[0]].float()
        kinds = kinds[targets != self.backbone.processor.end_ids[0]]
        figures = {"answer_loss": loss.item()}
        for index, kind in enumerate(KINDS):
            figures[f"{kind}_accuracy"] = (
                100.0 * right[kinds == index].mean().item() if (kinds == index).any() else 0.0
            )
        return loss, figures
