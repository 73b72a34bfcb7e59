"""Learning rates chosen on validation data: every method is trained with several multiples of its default.

The tuning runs are ordinary runs with seeds of their own, in the folder `tuning` of the results. What they chose and
cost is in `tuning.json`, which tables read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from math import inf
from typing import Any, Protocol

from harness.analysis.stats import mean
from harness.config import RunSettings
from harness.errors import UserError
from harness.experiment.published import by_recipe
from harness.experiment.rates import label_of
from harness.files import write_atomically
from harness.records.choices import Choice, read_choices
from harness.records.record import Record
from harness.records.store import TUNING, Store
from harness.registry import build_method
from harness.specs import Spec


class Runs(Protocol):
    """Runs all cells of settings; returns the records of those that ended.

    latencies: False leaves out the measurement of latencies.
    """

    def __call__(self, settings: RunSettings, /, *, latencies: bool) -> Sequence[Record]: ...


def tune(
    settings: RunSettings,
    scales: Sequence[float],
    seeds: Sequence[int],
    run: Runs,
    tune_on: str | None = None,
    extend: int = 0,
) -> list[Record]:
    """Choose every method's learning rate, keep the choices in the results folder, and run with them.

    scales: multiples of the default learning rates. seeds: of the tuning runs. tune_on: the one task of the run whose
    choices are used on all of its tasks; None: every task has its own. extend: how often a method whose best multiple
    is the largest or the smallest is trained with the next one beyond it.

    Raises:
        UserError: a multiple, seed or task does not fit, or a tuning run has failed or not ended.
    """
    if extend and len(scales) < 2:
        raise UserError("extend: needs two multiples at least, whose ratio says which comes next.")
    records: dict[float, list[Record]] = {}
    tried = tuning_settings(settings, scales, seeds, tune_on)
    _run_all(tried.items(), run, records)
    for _ in range(extend):
        _run_all(extended_settings(tried[scales[0]], choose(records)), run, records)
    tasks = () if tune_on is None else tuple(task.name for task in settings.tasks)
    store = Store(settings.output.results)
    write_choices([replace(choice, tasks=tasks) for choice in choose(records)], store)
    return list(run(tuned_settings(settings, store), latencies=True))


def _run_all(
    runs: Iterable[tuple[float, RunSettings]], run: Runs, records: dict[float, list[Record]]
) -> None:
    """Run all, and add what they give to the records.

    Raises:
        UserError: a run has not ended.
    """
    for scale, tried in runs:
        found = run(tried, latencies=False)
        expected = len(tried.methods) * len(tried.tasks) * len(tried.seeds)
        if len(found) < expected:
            raise UserError(
                f"{tried.output.results}: {len(found)} of {expected} tuning runs have finished; "
                "the same command continues."
            )
        records.setdefault(scale, []).extend(found)


def extended_settings(
    settings: RunSettings, choices: Sequence[Choice]
) -> Iterator[tuple[float, RunSettings]]:
    """The next multiple and its run, for every method whose best one is the largest or the smallest that it was given.

    settings: of the tuning runs, with any multiple. The next multiple is as far away as the last two are from each
    other: 4 after 1 and 2.
    """
    # With a recipe's options, as trained.
    methods = [spec for part in by_recipe(settings) for spec in part.methods]
    labels = {label_of(spec, build_method(spec)): spec for spec in methods}
    wanted: dict[tuple[float, str], list[Spec]] = {}
    for choice in choices:
        given = sorted(map(float, choice.scores))
        if choice.scale in (given[0], given[-1]):
            beside = given[1] if choice.scale == given[0] else given[-2]
            following = choice.scale * choice.scale / beside
            wanted.setdefault((following, choice.task), []).append(labels[choice.method])
    for (scale, name), specs in wanted.items():
        tasks = tuple(task for task in settings.tasks if task.name == name)
        narrow = settings.model_copy(update={"methods": tuple(specs), "tasks": tasks})
        yield scale, _trained(narrow, learning_rate_scale=scale)


def tuning_settings(
    settings: RunSettings, scales: Sequence[float], seeds: Sequence[int], tune_on: str | None = None
) -> dict[float, RunSettings]:
    """The runs that tuning takes, by multiple of the default learning rates.

    Raises:
        UserError: a learning rate is given, a seed of tuning is one of the results', the run lacks the task, or a
            number is impossible.
    """
    if not scales or len(set(scales)) != len(scales) or not all(0 < each < inf for each in scales):
        raise UserError(
            f"learning rates: must be different multiples greater than 0, such as 0.5,1,2; not {list(scales)}."
        )
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UserError(f"tuning seeds: must be different whole numbers from 0 on; not {list(seeds)}.")
    if not _from_elsewhere(settings, Store(settings.output.results)):  # an experiment is tuned anew
        settings = _trained(settings, tuned_rates=None)
    for key, default in (("learning_rate", None), ("learning_rate_scale", 1), ("tuned_rates", None)):
        if getattr(settings.training, key) != default:
            raise UserError(f"{key}: harness tune chooses the learning rates; leave it out.")
    tasks = tuple(task for task in settings.tasks if tune_on in (None, task.name))
    if not tasks:
        names = ", ".join(task.name for task in settings.tasks)
        raise UserError(f"tune_on: {tune_on} is not a task of the run, which has {names}.")
    if shared := sorted(set(seeds) & set(settings.seeds)):
        raise UserError(f"tuning seeds: {shared[0]} is also a seed of the results; tune with other seeds.")
    output = settings.output.model_copy(update={"results": settings.output.results / TUNING})
    recipe = by_recipe(settings)[0].recipe  # of the whole run; fewer methods or tasks might have another
    changed = {"seeds": tuple(seeds), "output": output, "tasks": tasks, "recipe": recipe}
    return {
        scale: _trained(settings.model_copy(update=changed), learning_rate_scale=scale) for scale in scales
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


def tuned_settings(settings: RunSettings, store: Store) -> RunSettings:
    """The run of the results, with the choices in their folder."""
    return _trained(settings, tuned_rates=store.tuning_file)


def write_choices(choices: Sequence[Choice], store: Store) -> None:
    """Keep the choices in the results folder. Those of other methods and tasks stay.

    Raises:
        UserError: the folder cannot be written.
    """
    new = {key for each in choices for key in each.keys}
    kept = [each for each in store.tuning() if not each.keys & new]
    content = [asdict(choice) for choice in [*kept, *choices]]
    write_atomically(store.tuning_file, (json.dumps(content, indent=1) + "\n").encode())


def keep_choices(settings: RunSettings, store: Store) -> None:
    """Copy the choices that a run uses into its results folder, as tables say below what was chosen.

    Raises:
        UserError: the folder cannot be written.
    """
    path = settings.training.tuned_rates
    if path is not None and _from_elsewhere(settings, store):
        write_choices(read_choices(path), store)


def _from_elsewhere(settings: RunSettings, store: Store) -> bool:
    """Whether a run uses choices from another folder than that of its results."""
    path = settings.training.tuned_rates
    return path is not None and path.resolve() != store.tuning_file.resolve()


def _trained(settings: RunSettings, **changes: Any) -> RunSettings:
    return settings.model_copy(update={"training": settings.training.model_copy(update=changes)})
