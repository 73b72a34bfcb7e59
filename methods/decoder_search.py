"""The searches of DAS and EAS as published for LLaVA and LaVIN, and the sizes of their adapters.

The bandit is that of DAS; its step, its probabilities, what rewards are computed on, and the number of skipped parts at
the start differ. Written from the public code (DoubtedSteam/DAS, DoubtedSteam/EAS).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from methods.bandit import Bandit, Findings, Update, reward_of
from methods.base import SearchTrainer
from methods.das_decision import DASDecision

Form = Literal["own", "llava", "lavin"]
Summary = Literal["first", "prompt", "all"]
"""What sums up an example: its first token, the mean over its prompt, or the mean over all its tokens in training (the
answer too, which a later token must predict)."""
LAYERS, WIDTH = 32, 4096
"""LLaMA-7B's, for which the numbers were published."""


@dataclass(frozen=True)
class Recipe:
    """One published system.

    skip: parts to skip, of 32. bottleneck, skip_bottleneck: of the adapters, at width 4,096.
    softmax: probabilities are softmax(10 · gates), else sigmoid(gates). step: factor of an update of the gates.
    sets: compared in an update. period: steps between updates; None: a 150th of an epoch.
    ramp: the number of skipped parts rises from 1 over the first half of the warm-up.
    reward_on: batch that rewards are computed on. reward_dropout: with dropout.
    summary: what the adapters' experts read.
    """

    skip: int
    bottleneck: int
    skip_bottleneck: int
    softmax: bool
    step: float
    sets: int
    period: int | None
    ramp: bool
    reward_on: Literal["held_out", "training"]
    reward_dropout: bool
    summary: Summary


RECIPES: Mapping[tuple[str, str], Recipe] = {
    ("das", "llava"): Recipe(4, 64, 256, False, 0.1, 5, 3, True, "training", True, "prompt"),
    ("das", "lavin"): Recipe(8, 8, 32, False, 0.05, 3, None, False, "held_out", False, "first"),
    ("eas", "llava"): Recipe(12, 128, 256, False, 1.0, 5, 3, True, "training", False, "prompt"),
    ("eas", "lavin"): Recipe(12, 8, 32, True, 2.0, 3, 10, False, "held_out", True, "all"),
}
"""By method and system."""


class RecipeOptions(Protocol):
    """Options that change a recipe; `methods.eas.EASOptions` explains them."""

    @property
    def form(self) -> Form: ...

    @property
    def skip(self) -> int | None: ...

    @property
    def period(self) -> int | None: ...

    @property
    def gate_step(self) -> float | None: ...

    @property
    def reward_on(self) -> Literal["held_out", "training"] | None: ...

    @property
    def reward_dropout(self) -> bool | None: ...

    @property
    def search_epochs(self) -> int: ...

    @property
    def warmup_epochs(self) -> int: ...


def recipe_of(method: str, options: RecipeOptions) -> Recipe:
    """The recipe of `options.form`, with what the options change."""
    recipe = RECIPES[method, options.form]
    changes: dict[str, Any] = {
        "step": options.gate_step,
        "period": options.period,
        "reward_on": options.reward_on,
        "reward_dropout": options.reward_dropout,
    }
    return replace(recipe, **{name: value for name, value in changes.items() if value is not None})


def scaled(size: int, width: int) -> int:
    """A bottleneck published for width 4,096 at another width, even and at least 2."""
    return max(2, round(size * width / WIDTH / 2) * 2)


class RecipeBandit(Bandit):
    """The bandit with a recipe's probabilities and step."""

    def __init__(self, blocks: int, skip: int, generator: torch.Generator, recipe: Recipe) -> None:
        super().__init__(blocks, skip, generator)
        self._recipe = recipe

    @property
    def probabilities(self) -> Tensor:
        """Of each part to be drawn."""
        if self._recipe.softmax:
            return torch.softmax(10 * self.gates, dim=0)
        return super().probabilities

    def update(self, sets: list[tuple[int, ...]], rewards: list[float]) -> None:
        """As in DAS, `step` times as far."""
        before = self.gates.clone()
        super().update(sets, rewards)
        self.gates = before + self._recipe.step * (self.gates - before)

    def draw_fewer(self, number: int) -> tuple[int, ...]:
        """`number` parts instead of `skip`."""
        drawn = torch.multinomial(self.probabilities, number, generator=self._generator)
        return tuple(sorted(drawn.tolist()))


def ramped(recipe: Recipe, skip: int, step: int, warmup: int) -> int:
    """How many parts are skipped at a step of the search; `warmup`: steps of its warm-up."""
    if not recipe.ramp or not warmup:
        return skip
    return min(skip, skip * step * 2 // warmup + 1)


def search_by_recipe(
    trainer: SearchTrainer,
    recipe: Recipe,
    options: RecipeOptions,
    names: Sequence[str],
    skip: int,
    skip_only: Callable[[Sequence[int]], None],
) -> DASDecision:
    """Train the super-network while the gates learn, as the recipe says; arguments as in `search_with_bandit`.

    Rewards on training data are computed on the first batch of the training part.
    """
    bandit = RecipeBandit(len(names), skip, trainer.generator, recipe)
    findings = Findings(bandit)
    steps = trainer.steps_per_epoch
    period = max(1, steps // 150) if recipe.period is None else recipe.period
    sets = min(recipe.sets, comb(len(names), skip))

    def before_step(epoch: int, step: int) -> None:
        number = ramped(recipe, skip, epoch * steps + step, options.warmup_epochs * steps)
        skip_only(bandit.draw_fewer(number))

    def after_step(epoch: int, step: int) -> None:
        if epoch < options.warmup_epochs or (step + 1) % period or sets < 2:
            return
        batch = trainer.training_batch() if recipe.reward_on == "training" else trainer.held_out_batch()
        drawn = bandit.draw_distinct(sets)
        losses = []
        for chosen in drawn:
            skip_only(chosen)
            losses.append(trainer.loss(batch, training_mode=recipe.reward_dropout))
        rewards = reward_of(losses, "exponential")
        bandit.update(drawn, rewards)
        named = [[names[i] for i in chosen] for chosen in drawn]
        findings.updates.append(Update(epoch, step, named, losses, rewards, bandit.gates.tolist()))

    trainer.train(options.search_epochs, before_step, after_step, findings)
    settings = {
        "form": options.form,
        "reward": "exponential",
        "reward_on": recipe.reward_on,
        "reward_dropout": recipe.reward_dropout,
        "gate_step": recipe.step,
        "skip": skip,
        "period": period,
        "sets": sets,
        "search_epochs": options.search_epochs,
        "warmup_epochs": options.warmup_epochs,
        "warm_start": False,
    }
    gates = dict(zip(names, bandit.gates.tolist(), strict=True))
    return DASDecision(tuple(names[i] for i in bandit.best()), gates, settings, tuple(findings.updates))
