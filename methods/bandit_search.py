"""DAS's search: a bandit learns which parts of a backbone to skip while the adapters are trained.

DAS searches over blocks with it, EAS over attention modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import Literal, Protocol

from harness.errors import UserError
from methods.bandit import Bandit, Findings, Update, reward_of
from methods.base import SearchTrainer
from methods.das_decision import DASDecision
from methods.option_checks import at_least


class SearchOptions(Protocol):
    """The options of a search with a bandit; `methods.das.DASOptions` explains them."""

    @property
    def variant(self) -> Literal["sound", "published"]: ...

    @property
    def reward(self) -> Literal["standardized", "exponential"] | None: ...

    @property
    def search_epochs(self) -> int: ...

    @property
    def warmup_epochs(self) -> int: ...

    @property
    def period(self) -> int | None: ...

    @property
    def sets(self) -> int: ...

    @property
    def warm_start(self) -> bool | None: ...


def check_search(method: str, options: SearchOptions, searches: bool) -> None:
    """Check the options of the search.

    Raises:
        UserError: one is too small.
    """
    at_least(method, 1, period=options.period)
    at_least(method, 0, warmup_epochs=options.warmup_epochs)
    if options.sets < 2:
        raise UserError(
            f"{method}: sets must be at least 2, because sets are compared with each other; got {options.sets}."
        )
    if searches and options.search_epochs <= options.warmup_epochs:
        raise UserError(
            f"{method}: the gates learn only after warmup_epochs ({options.warmup_epochs}); "
            f"search_epochs must be more, got {options.search_epochs}."
        )


def holdout(options: SearchOptions) -> float:
    """Share of the training data held out for rewards: 0 in the published variant, which uses the training data."""
    return 0.0 if options.variant == "published" else 0.2


def warm_starts(options: SearchOptions) -> bool:
    """True if training starts with the weights that the search trained."""
    return options.variant == "sound" if options.warm_start is None else options.warm_start


def search_with_bandit(
    trainer: SearchTrainer,
    options: SearchOptions,
    names: Sequence[str],
    skip: int,
    skip_only: Callable[[Sequence[int]], None],
) -> DASDecision:
    """Train the super-network on the trainer's training part while the gates learn.

    names: of the parts, one gate each. skip: how many of them to skip.
    skip_only: makes the super-network skip the parts with these indices and no others.
    """
    bandit = Bandit(len(names), skip, trainer.generator)
    period = _period(options, trainer.steps_per_epoch)
    sets = min(options.sets, comb(bandit.blocks, bandit.skip))
    reward = options.reward or ("standardized" if options.variant == "sound" else "exponential")
    published = options.variant == "published"
    findings = Findings(bandit)

    def losses_of(drawn: Sequence[Sequence[int]]) -> list[float]:
        """The loss of each set, all on the same batch."""
        batch = trainer.training_batch() if published else trainer.held_out_batch()
        losses = []
        for chosen in drawn:
            skip_only(chosen)
            losses.append(trainer.loss(batch, training_mode=published))
        return losses

    def update(epoch: int, step: int) -> None:
        drawn = bandit.draw_distinct(sets)
        losses = losses_of(drawn)
        rewards = reward_of(losses, reward)
        bandit.update(drawn, rewards)
        named = [[names[i] for i in chosen] for chosen in drawn]
        findings.updates.append(Update(epoch, step, named, losses, rewards, bandit.gates.tolist()))

    def due(epoch: int, step: int) -> bool:
        if epoch < options.warmup_epochs or sets < 2:
            return False
        if not published:
            return (step + 1) % period == 0
        # The authors' counter also runs during the warm-up and over the ends of epochs.
        steps = trainer.steps_per_epoch
        first = max(period - 1, options.warmup_epochs * steps)
        since = epoch * steps + step - first
        return since >= 0 and since % period == 0

    def before_step(epoch: int, step: int) -> None:
        trained = bandit.draw()
        if published and due(epoch, step):
            update(epoch, step)
        skip_only(trained)

    def after_step(epoch: int, step: int) -> None:
        if not published and due(epoch, step):
            update(epoch, step)

    trainer.train(options.search_epochs, before_step, after_step, findings)
    settings = {
        "variant": options.variant,
        "reward": reward,
        "skip": bandit.skip,
        "period": period,
        "sets": sets,
        "search_epochs": options.search_epochs,
        "warmup_epochs": options.warmup_epochs,
        "warm_start": warm_starts(options),
    }
    gates = dict(zip(names, bandit.gates.tolist(), strict=True))
    return DASDecision(tuple(names[i] for i in bandit.best()), gates, settings, tuple(findings.updates))


def _period(options: SearchOptions, steps_per_epoch: int) -> int:
    if options.period is not None:
        return options.period
    return 10 if options.variant == "published" else max(1, min(10, steps_per_epoch // 60))
