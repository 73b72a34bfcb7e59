"""Is what a method chooses better than another choice? Every alternative is trained, with several seeds.

First the method and its rivals choose, as ordinary cells. Then each set of skipped parts is trained as a cell of its
own, whose set is given. All cells are kept, so that an interrupted audit resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb, prod
from random import Random

from harness.analysis.choices import Audit, Set, audit
from harness.config import RunSettings
from harness.errors import UserError
from harness.experiment.fitting import check_method
from harness.experiment.plan import load_backbone
from harness.experiment.rates import label_of
from harness.records.record import Record
from harness.registry import build_method
from harness.specs import Spec, canonical, parse_spec

MOST_SETS = 2000
"""Sets that are enumerated at most; more are drawn at random only."""


@dataclass(frozen=True)
class Question:
    """What is audited.

    spec: the method. skip: how many parts to skip, in each stream if it has several numbers. sets: how many random sets
    to train; None: all.
    """

    spec: Spec
    skip: tuple[int, ...]
    sets: int | None

    @property
    def choosers(self) -> tuple[Spec, ...]:
        """The method and its rivals, told how many parts to skip."""
        rivals = build_method(self.spec).rivals
        if not rivals:
            raise UserError(
                f"{canonical(self.spec)}: has no rivals to compare with; audit a method such as das."
            )
        specs = [self.spec, *map(parse_spec, rivals)]
        return tuple(Spec(each.name, {**each.options, "skip": str(sum(self.skip))}) for each in specs)

    def fixed(self, chosen: Set) -> Spec:
        """The method with a given set."""
        options = {key: value for key, value in self.spec.options.items() if key != "skip"}
        return Spec(self.spec.name, {**options, **build_method(self.spec).fixed(chosen)})


def fitting_choosers(settings: RunSettings, question: Question) -> tuple[Spec, ...]:
    """The method and those of its rivals that do not refuse the backbone.

    Raises:
        UserError: the backbone cannot be loaded, or the method has no rivals.
    """
    method, *rivals = question.choosers
    backbone = load_backbone(settings.backbone, settings.backbone_options)

    def fits(spec: Spec) -> bool:
        try:
            check_method(backbone, build_method(spec))
        except UserError:
            return False
        return True

    return method, *filter(fits, rivals)


def read_skip(text: str) -> tuple[int, ...]:
    """`2`, or `2+2` for two of each stream.

    Raises:
        UserError: it is neither.
    """
    parts = text.split("+")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"skip must be a number such as 2, or one for each stream such as 2+2, not '{text}'.")
    return tuple(map(int, parts))


def choices_of(records: Sequence[Record]) -> tuple[tuple[str, ...], dict[str, list[Set]]]:
    """All parts that could be skipped, and what was chosen with each seed, by the chooser's label.

    Raises:
        UserError: a cell has not finished, or its search skips nothing.
    """
    parts: tuple[str, ...] = ()
    found: dict[str, list[Set]] = {}
    for record in sorted(records, key=lambda each: each.cell.seed):
        label = record.cell.method.label
        if record.search is None or record.search.diagram is None:
            raise UserError(f"{label} seed {record.cell.seed}: {record.error or 'its search skips nothing'}.")
        parts = record.search.diagram.blocks
        found.setdefault(label, []).append(tuple(sorted(record.search.diagram.skipped, key=parts.index)))
    return parts, found


def sets_to_train(
    parts: Sequence[str], skip: Sequence[int], number: int | None, chosen: Sequence[Set]
) -> tuple[list[Set], list[Set]]:
    """The sets that stand for all (drawn at random, or all), and the chosen ones beside them.

    Raises:
        UserError: the numbers do not fit the parts, or all sets are too many.
    """
    by_stream: dict[str, list[str]] = {}
    for part in parts:
        by_stream.setdefault(part.partition(".")[0], []).append(part)
    groups = [list(parts)] if len(skip) == 1 else list(by_stream.values())
    if len(groups) != len(skip) or any(n >= len(group) for n, group in zip(skip, groups, strict=False)):
        sizes = " + ".join(str(len(group)) for group in by_stream.values())
        raise UserError(
            f"skip={'+'.join(map(str, skip))} does not fit {sizes} parts ({', '.join(by_stream)})."
        )
    possible = prod(comb(len(group), n) for n, group in zip(skip, groups, strict=True))
    if number is None and possible > MOST_SETS:
        raise UserError(
            f"there are {possible:,} sets; give the number of random ones to train, such as --sets 60."
        )
    if number is None or number >= possible:
        alternatives = [combinations(group, n) for n, group in zip(skip, groups, strict=True)]
        drawn = [tuple(part for each in picked for part in each) for picked in product(*alternatives)]
    else:
        random, unique = Random(0), dict[Set, None]()
        while len(unique) < number:
            picked = [part for n, group in zip(skip, groups, strict=True) for part in random.sample(group, n)]
            unique[tuple(sorted(picked, key=parts.index))] = None
        drawn = list(unique)
    return drawn, [each for each in dict.fromkeys(chosen) if each not in drawn]


def run_audit(
    settings: RunSettings, question: Question, run: Callable[[RunSettings], Sequence[Record] | None]
) -> Audit | None:
    """Train everything and compare.

    settings: of one task; the methods are replaced. run: runs all cells of settings; None if it was interrupted.

    Raises:
        UserError: a cell failed, or there are fewer than two seeds.
    """
    if len(settings.seeds) < 2 or len(settings.tasks) != 1:
        raise UserError(
            "an audit needs at least two seeds and exactly one task, such as --seeds 0,1,2 --tasks vqa."
        )
    records = run(settings.model_copy(update={"methods": fitting_choosers(settings, question)}))
    if records is None:
        return None
    parts, choices = choices_of(records)
    picked = [each for sets in choices.values() for each in sets]
    drawn, beside = sets_to_train(parts, question.skip, question.sets, picked)
    fixed = [(each, question.fixed(each)) for each in [*drawn, *beside]]
    records = run(settings.model_copy(update={"methods": tuple(spec for _, spec in fixed)}))
    if records is None:
        return None
    scores = _scores(
        records, {label_of(spec, build_method(spec)): each for each, spec in fixed}, settings.seeds
    )
    return audit(scores, drawn, choices, records[0].cell.task.higher_is_better, parts)


def _scores(
    records: Sequence[Record], sets: Mapping[str, Set], seeds: Sequence[int]
) -> dict[Set, list[float]]:
    """Scores of each set in the order of the seeds."""
    found = {(sets[each.cell.method.label], each.cell.seed): each.primary for each in records}
    scores: dict[Set, list[float]] = {}
    for chosen in sets.values():
        values = [found.get((chosen, seed)) for seed in seeds]
        numbers = [value for value in values if value is not None]
        if len(numbers) < len(seeds):
            raise UserError(f"{'+'.join(chosen)}: a cell has failed; the same command runs it again.")
        scores[chosen] = numbers
    return scores
