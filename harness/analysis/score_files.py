"""Metrics from a predictions file and an official annotation file, no model and no training data needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.registry import resolve_scorer
from tasks.data.files import field, parse_json_lines, read_text
from tasks.scorer import Answers, OfficialFiles, Scorer


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
    scorer, files = find_files(task)
    truths = files.read_truths(annotations)
    answers = read_answers(files, predictions)
    missing = [identifier for identifier in truths if identifier not in answers]
    known = [identifier for identifier in truths if identifier in answers]
    if not known:
        raise UserError(f"{predictions}: none of its {len(answers)} examples is in {annotations}")
    if missing and not partial:
        raise UserError(
            f"{predictions}: {len(missing)} of the {len(truths)} examples of {annotations} have no "
            f"prediction, first '{missing[0]}'; --partial scores those that have one"
        )
    judged = [files.judge(identifier, answers[identifier], truths[identifier]) for identifier in known]
    return Scored(scorer.score(judged), len(known), len(missing), len(answers) - len(known))


def find_files(task: str) -> tuple[Scorer, OfficialFiles]:
    """A task's scorer and how its official files are read.

    Raises:
        UserError: no such task, or one that cannot be scored from files.
    """
    scorer = resolve_scorer(task)
    if scorer.files is None:
        raise UserError(f"{task}: cannot be scored from files; its scorer reads none.")
    return scorer, scorer.files


def read_answers(files: OfficialFiles, path: Path) -> Answers:
    """Answers by example id; which format it is, the first line tells.

    Raises:
        UserError: naming file and line.
    """
    text, _ = read_text(path)
    if not text.strip():
        raise UserError(f"{path}: is empty")
    first = text.lstrip().partition("\n")[0]
    if not first.startswith("{") or '"id"' not in first:
        return files.read_submission(path)
    answers: Answers = {}
    for place, line in parse_json_lines(text, path):
        identifier = field(line, "id", str, place)
        if identifier in answers:
            raise UserError(f"{place}: id '{identifier}' appears twice")
        answers[identifier] = files.read_answer(line, place)
    return answers
