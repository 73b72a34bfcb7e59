"""Hyper-parameters of the embedded backbones' pre-training."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.mini.render import DARK, PLAIN, Style


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one stage of pre-training.

    steps: optimiser steps. batch_size: new scenes per step.
    processes: processes that share a batch and average their gradients. With a model this small, one core per
        process is much faster than several cores in one process. Each process draws its own scenes, so the number
        changes the result.
    style: how scenes are drawn, a key of `STYLES`.
    mask_probability: probability of masking a content word of a caption; a third of it for function words.
    single: fraction of the masked captions in which exactly one word, a content word, is masked.
    hard: fraction of the negatives that differ from a true caption in one word.
    dialogue_tokens: turns about one scene are added while they fit; 0 for backbones that learn from captions.
    warmup: fraction of the steps with linear warm-up; the learning rate then decays as a half cosine to 1 %.
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
    dialogue_tokens: int = 0


STYLES: dict[str, Style] = {"dark": DARK, "plain": PLAIN}

VILT_STAGES = (Recipe(steps=4400, style="dark", learning_rate=1e-3, single=0.0, seed=20230), Recipe())
"""Stages of `vilt-mini`. Each starts from the previous stage's weights with new heads and a new optimiser. Shapes are
learned on dark backgrounds first; learning them on all backgrounds from the start takes more than twice as long."""
METER_STAGES = (
    Recipe(steps=2400, style="dark", learning_rate=1e-3, single=0.4, seed=20232),
    Recipe(steps=3600, seed=20233),
)
"""Stages of `meter-mini`."""
LLAVA_STAGES = (
    Recipe(steps=1000, batch_size=20, processes=1, learning_rate=1e-3, dialogue_tokens=80, seed=20234),
    Recipe(steps=1000, batch_size=20, processes=1, learning_rate=1e-3, dialogue_tokens=80, seed=20236),
)
"""Stages of `llava-mini`, the second with a fresh optimiser and schedule."""
