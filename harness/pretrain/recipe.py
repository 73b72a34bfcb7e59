"""How long, on what and at which rates an embedded backbone is pre-trained."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.mini.render import DARK, PLAIN, Style


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

VILT_STAGES = (Recipe(steps=4400, style="dark", learning_rate=1e-3, single=0.0, seed=20230), Recipe())
"""Of `vilt-mini`, each going on from the weights of the one before with fresh heads and a fresh optimiser. Shapes
are learned on dark backgrounds; begun on all, they take more than twice as long."""
METER_STAGES = (
    Recipe(steps=2400, style="dark", learning_rate=1e-3, single=0.4, seed=20232),
    Recipe(steps=3600, seed=20233),
)
"""Of `meter-mini`, likewise."""
