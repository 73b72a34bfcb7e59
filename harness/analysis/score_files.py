"""Metrics from a predictions file and an official annotation file, without model or training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.files import read_json_lines, read_text
from harness.registry import resolve_scorer
from tasks.data.files import field
from tasks.scorer import Answers, OfficialFiles, Scorer


@dataclass(frozen=True)
class Scored:
    """Metrics in percent and the numbers of examples.

    examples: scored. missing: annotated but not predicted. unknown: predicted but not annotated, left out.
    """

    metrics: Mapping[str, float]
    examples: int
    missing: int
    unknown: int


def score_files(task: str, predictions: Path, annotations: Path, partial: bool = False) -> Scored:
    """Score `predictions` (a cell's JSON lines or the task's official submission file) on `annotations`.

    Only ids and answers are read from the predictions; scores stored in the file are ignored.
    partial: score the predicted examples even if others have no prediction.

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
    """A task's scorer and the reader of its official files.

    Raises:
        UserError: unknown task, or its scorer reads no files.
    """
    scorer = resolve_scorer(task)
    if scorer.files is None:
        raise UserError(f"{task}: cannot be scored from files, as its scorer reads none.")
    return scorer, scorer.files


def read_answers(files: OfficialFiles, path: Path) -> Answers:
    """Answers by example id. The format is recognised from the first line.

    Raises:
        UserError: the file is malformed; the message names file and line.
    """
    text = read_text(path).value
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    first = text.lstrip().partition("\n")[0]
    if not first.startswith("{") or '"id"' not in first:
        return files.read_submission(path)
    answers: Answers = {}
    for place, line in read_json_lines(path).value:
        identifier = field(line, "id", str, place)
        if identifier in answers:
            raise UserError(f"{place}: id '{identifier}' appears twice")
        answers[identifier] = files.read_answer(line, place)
    return answers
