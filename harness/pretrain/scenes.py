"""Batches of scenes with captions and pre-training targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from harness.backbones.base import Processor
from harness.backbones.inputs import Inputs
from harness.backbones.meter.processor import MeterProcessor
from harness.backbones.vilt.processor import ViltProcessor
from harness.pretrain.recipe import STYLES, Recipe
from tasks.mini.captions import caption, caption_words, falsify, join, true_clauses
from tasks.mini.patches import patch_labels
from tasks.mini.render import render
from tasks.mini.world import PRETRAINING, Scene, sample_scene

IGNORED = -100
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
class Scenes:
    """A batch of B scenes with L text tokens and P patches. Targets are `IGNORED` where there is nothing to predict.

    words: classes of masked words, `(B, L)`. single: class of a caption's only masked word, `(B/2,)`.
    matches: 1 if caption and scene match, `(B/2,)`. changed: 1 at a changed word, 0 at others, `(B/2, L)`.
    patches: colour, shape and size, `(B, P, 3)`.
    """

    inputs: Inputs
    words: Tensor
    single: Tensor
    matches: Tensor
    changed: Tensor
    patches: Tensor


BatchT = TypeVar("BatchT")


class Drawn(ABC, Generic[BatchT]):
    """Batches of one rank, from step `start` on.

    The batch of step k depends on (seed, k, rank) only, so a run can resume at any step.
    """

    def __init__(self, recipe: Recipe, start: int, rank: int) -> None:
        self.recipe, self.start, self.rank = recipe, start, rank
        self.size = recipe.batch_size // recipe.processes

    def __iter__(self) -> Iterator[BatchT]:
        for step in range(self.start, self.recipe.steps):
            yield self.batch(np.random.default_rng([self.recipe.seed, step, self.rank]))

    @abstractmethod
    def batch(self, rng: np.random.Generator) -> BatchT:
        """Draw one batch."""


class CaptionedScenes(Drawn[Scenes]):
    """Scenes with captions, some of them false."""

    def __init__(self, recipe: Recipe, processor: Processor, start: int = 0, rank: int = 0) -> None:
        super().__init__(recipe, start, rank)
        self.processor, self.mask_id = processor, mask_id(processor)
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

    def batch(self, rng: np.random.Generator) -> Scenes:
        """Draw one batch."""
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
        """A caption that is false for `scene`, and the true caption it was made from (empty if there is none)."""
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
        raise ValueError(f"'{word}' is not a single token of the vocabulary")
    return ids[1]


def mask_id(processor: Processor) -> int:
    """Id of the mask token.

    Raises:
        ValueError: the vocabulary has no mask token.
    """
    assert isinstance(processor, ViltProcessor | MeterProcessor)
    token = "[MASK]" if isinstance(processor, ViltProcessor) else "<mask>"
    found: int | None = processor.tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the vocabulary has no {token}")
    return found
