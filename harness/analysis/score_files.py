"""Metrics from a predictions file and an official annotation file, no model and no training data needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError, did_you_mean
from harness.registry import names, resolve_task
from tasks.data.files import field, parse_json_lines, read_text
from tasks.scorer import Answers, Scorer
from tasks.scorers import SCORERS


@dataclass(frozen=True)
class Scored:
    """Metrics in percent, and over how many examples.

    examples: scored. missing: annotated and not predicted. unknown: predicted and not annotated, left out.
    """

    metrics: Mapping[str, float]
    examples: int
    missing: int
    unknown: int


def score_files(task: str, predictions: Path, annotations: Path, partial: bool = False) -> Scored:
    """Score `predictions` (ours, JSON lines, or the task's official submission file) on `annotations`.

    Only ids and answers are read of the predictions; scores that a file brings along are not believed.
    partial: score what is predicted where that is not everything.

    Raises:
        UserError: no such task, a broken file, or (without `partial`) examples without a prediction.
    """
    scorer = find_scorer(task)
    truths = scorer.read_truths(annotations)
    answers = read_answers(scorer, predictions)
    missing = [identifier for identifier in truths if identifier not in answers]
    known = [identifier for identifier in truths if identifier in answers]
    if not known:
        raise UserError(f"{predictions}: none of its {len(answers)} examples is in {annotations}")
    if missing and not partial:
        raise UserError(
            f"{predictions}: {len(missing)} of the {len(truths)} examples of {annotations} have no "
            f"prediction, first '{missing[0]}'; --partial scores those that have one"
        )
    judged = [scorer.judge(identifier, answers[identifier], truths[identifier]) for identifier in known]
    return Scored(scorer.score(judged), len(known), len(missing), len(answers) - len(known))


def find_scorer(task: str) -> Scorer:
    """A built-in task's scorer, or the attribute `scorer` of a third party's task.

    Raises:
        UserError: no such task, or one that cannot be scored from files.
    """
    if task in SCORERS:
        return SCORERS[task]
    if task not in names("tasks"):
        raise UserError(f"there is no task '{task}'.{did_you_mean(task, names('tasks'))}")
    scorer: Any = getattr(resolve_task(task), "scorer", None)
    if not isinstance(scorer, Scorer):
        raise UserError(f"{task}: cannot be scored from files; its task class has no attribute 'scorer'.")
    return scorer


def read_answers(scorer: Scorer, path: Path) -> Answers:
    """Answers by example id; which format it is, the first line tells.

    Raises:
        UserError: naming file and line.
    """
    text, _ = read_text(path)
    if not text.strip():
        raise UserError(f"{path}: is empty")
    first = text.lstrip().partition("\n")[0]
    if not first.startswith("{") or '"id"' not in first:
        return scorer.read_submission(path)
    answers: Answers = {}
    for place, line in parse_json_lines(text, path):
        identifier = field(line, "id", str, place)
        if identifier in answers:
            raise UserError(f"{place}: id '{identifier}' is there twice")
        answers[identifier] = scorer.read_answer(line, place)
    return answers
