"""Learning rates chosen on validation data: every method is trained with several multiples of its default.

The tuning runs are ordinary runs with seeds of their own, in the folder `tuning` of the results. What they chose and
cost is in `tuning.json`, which tables read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from harness.analysis.stats import mean
from harness.config import RunSettings
from harness.errors import UserError
from harness.experiment.plan import label_of
from harness.files import write_atomically
from harness.records.record import Record
from harness.records.store import TUNING, Store
from harness.registry import build_method
from harness.specs import Spec


@dataclass(frozen=True)
class Choice:
    """The multiple of a method's default learning rate that is best on a task's validation split.

    method: label. scores: mean validation score over the seeds, by multiple. runs, seconds: number and duration of the
    tuning runs, searches included.
    """

    backbone: str
    task: str
    method: str
    scale: float
    scores: Mapping[str, float]
    seeds: tuple[int, ...]
    runs: int
    seconds: float


def tuning_settings(
    settings: RunSettings, scales: Sequence[float], seeds: Sequence[int]
) -> dict[float, RunSettings]:
    """The runs that tuning takes, by multiple of the default learning rates.

    Raises:
        UserError: a learning rate is given, or a seed of tuning is one of the results'.
    """
    if settings.training.learning_rate is not None or settings.training.learning_rate_scale != 1:
        raise UserError(
            "learning_rate: harness tune chooses it; leave out learning_rate and learning_rate_scale."
        )
    if shared := sorted(set(seeds) & set(settings.seeds)):
        raise UserError(f"--tuning-seeds: {shared[0]} is also a seed of the results; tune with other seeds.")
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
    new = {(each.backbone, each.task, each.method) for each in choices}
    kept = [each for each in store.tuning() if (each["backbone"], each["task"], each["method"]) not in new]
    content = [*kept, *(asdict(choice) for choice in choices)]
    write_atomically(store.root / f"{TUNING}.json", (json.dumps(content, indent=1) + "\n").encode())


def _scaled(settings: RunSettings, scale: float) -> RunSettings:
    training = settings.training.model_copy(update={"learning_rate_scale": scale})
    return settings.model_copy(update={"training": training})
