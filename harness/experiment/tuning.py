"""Learning rates chosen on validation data: every method is trained with several multiples of its default.

The tuning runs are ordinary runs with seeds of their own, in the folder `tuning` of the results. What they chose and
cost is in `tuning.json`, which tables read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import inf

from harness.analysis.stats import mean
from harness.config import RunSettings
from harness.errors import UserError
from harness.experiment.plan import label_of
from harness.files import write_atomically
from harness.records.choices import Choice
from harness.records.record import Record
from harness.records.store import TUNING, Store
from harness.registry import build_method
from harness.specs import Spec


def tune(
    settings: RunSettings,
    scales: Sequence[float],
    seeds: Sequence[int],
    run: Callable[[RunSettings], Sequence[Record]],
) -> list[Record]:
    """Choose every method's learning rate, keep the choices in the results folder, and run with them.

    scales: multiples of the default learning rates. seeds: of the tuning runs. run: runs all cells of settings and
    returns the records of those that ended.

    Raises:
        UserError: a multiple or seed does not fit, or a tuning run has failed or not ended.
    """
    records: dict[float, Sequence[Record]] = {}
    for scale, tried in tuning_settings(settings, scales, seeds).items():
        records[scale] = run(tried)
        expected = len(tried.methods) * len(tried.tasks) * len(tried.seeds)
        if len(records[scale]) < expected:
            raise UserError(
                f"{tried.output.results}: {len(records[scale])} of {expected} tuning runs have finished; "
                "the same command continues."
            )
    choices = choose(records)
    write_choices(choices, Store(settings.output.results))
    return [record for tuned in tuned_settings(settings, choices) for record in run(tuned)]


def tuning_settings(
    settings: RunSettings, scales: Sequence[float], seeds: Sequence[int]
) -> dict[float, RunSettings]:
    """The runs that tuning takes, by multiple of the default learning rates.

    Raises:
        UserError: a learning rate is given, a seed of tuning is one of the results', or a number is impossible.
    """
    if not scales or len(set(scales)) != len(scales) or not all(0 < each < inf for each in scales):
        raise UserError(
            f"learning rates: must be different multiples greater than 0, such as 0.5,1,2; not {list(scales)}."
        )
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UserError(f"tuning seeds: must be different whole numbers from 0 on; not {list(seeds)}.")
    if settings.training.learning_rate is not None or settings.training.learning_rate_scale != 1:
        raise UserError(
            "learning_rate: harness tune chooses it; leave out learning_rate and learning_rate_scale."
        )
    if shared := sorted(set(seeds) & set(settings.seeds)):
        raise UserError(f"tuning seeds: {shared[0]} is also a seed of the results; tune with other seeds.")
    output = settings.output.model_copy(update={"results": settings.output.results / TUNING})
    return {
        scale: _scaled(settings.model_copy(update={"seeds": tuple(seeds), "output": output}), scale)
        for scale in scales
    }


def choose(records: Mapping[float, Sequence[Record]]) -> list[Choice]:
    """The best multiple for each method on each task; of equal ones the smallest.

    records: of the tuning runs, by multiple.

    Raises:
        UserError: a tuning run has not finished, so that the choice would not be fair.
    """
    groups: dict[tuple[str, str, str], dict[float, list[Record]]] = {}
    for scale, of_scale in records.items():
        for record in of_scale:
            if record.status != "finished":
                raise UserError(
                    f"tuning run {record.cell.id} ({record.cell.method.label}) failed: {record.error}"
                )
            key = record.cell.backbone.name, record.cell.task.name, record.cell.method.label
            groups.setdefault(key, {}).setdefault(scale, []).append(record)
    return [_choose(key, group) for key, group in groups.items()]


def _choose(key: tuple[str, str, str], by_scale: Mapping[float, Sequence[Record]]) -> Choice:
    every = [record for group in by_scale.values() for record in group]
    task = every[0].cell.task
    scores = {
        scale: mean([record.metrics["val"][task.primary_metric] for record in group])
        for scale, group in sorted(by_scale.items())
    }
    best = (max if task.higher_is_better else min)(scores, key=scores.__getitem__)
    return Choice(
        *key,
        scale=best,
        scores={f"{scale:g}": score for scale, score in scores.items()},
        seeds=tuple(sorted({record.cell.seed for record in every})),
        runs=len(every),
        seconds=sum(
            record.training.seconds + (0.0 if record.search is None else record.search.seconds)
            for record in every
            if record.training is not None
        ),
    )


def tuned_settings(settings: RunSettings, choices: Sequence[Choice]) -> list[RunSettings]:
    """The runs of the results: a run for each task and each multiple that was chosen on it."""
    chosen = {(choice.task, choice.method): choice.scale for choice in choices}
    runs: list[RunSettings] = []
    for task in settings.tasks:
        methods: dict[float, list[Spec]] = {}
        for spec in settings.methods:
            methods.setdefault(chosen[task.name, label_of(spec, build_method(spec))], []).append(spec)
        for scale, specs in methods.items():
            narrow = settings.model_copy(update={"methods": tuple(specs), "tasks": (task,)})
            runs.append(_scaled(narrow, scale))
    return runs


def write_choices(choices: Sequence[Choice], store: Store) -> None:
    """Keep the choices in the results folder. Those of other methods and tasks stay.

    Raises:
        UserError: the folder cannot be written.
    """
    new = {each.key for each in choices}
    kept = [each for each in store.tuning() if each.key not in new]
    content = [asdict(choice) for choice in [*kept, *choices]]
    write_atomically(store.root / f"{TUNING}.json", (json.dumps(content, indent=1) + "\n").encode())


def _scaled(settings: RunSettings, scale: float) -> RunSettings:
    training = settings.training.model_copy(update={"learning_rate_scale": scale})
    return settings.model_copy(update={"training": training})
