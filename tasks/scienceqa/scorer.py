"""How ScienceQA's answers are scored from predictions and from the official files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from harness.errors import UserError
from tasks.data.files import read_json
from tasks.scienceqa.files import LETTERS, SUBSETS, Problem, find_results, read_problems, read_splits
from tasks.scienceqa.scoring import score
from tasks.scorer import Answers, OfficialFiles, Scorer, Share


def read_truths(path: Path) -> dict[str, Problem]:
    """The test problems by id, from `problems.json`, with `pid_splits.json` beside it."""
    problems, _ = read_problems(path)
    splits, _ = read_splits(path.parent)
    return {identifier: problems[identifier] for identifier in splits["test"] if identifier in problems}


def read_submission(path: Path) -> Answers:
    """`{"results": {id: index of the option}}`; -1 for an answer that names no option."""
    content, _ = read_json(path)
    answers: Answers = {}
    for identifier, index in find_results(content, path).items():
        if type(index) is not int or not -1 <= index < len(LETTERS):
            raise UserError(f"{path}: '{identifier}' must be an index from -1 to {len(LETTERS) - 1}")
        answers[identifier] = None if index < 0 else LETTERS[index]
    return answers


def read_answer(line: Any, place: str) -> str | None:
    """The letter in one line of the harness's own predictions; None if the answer names no option."""
    answer = line.get("prediction") if isinstance(line, dict) else ""
    if answer is not None and answer not in LETTERS:
        raise UserError(f"{place}: 'prediction' must be one of {', '.join(LETTERS)} or null")
    return answer


def judge(identifier: str, answer: str | None, truth: Problem) -> dict[str, Any]:
    """An answer, whether it is right, and the subsets it counts in."""
    label = LETTERS[truth.answer]
    return {
        "id": identifier,
        "prediction": answer,
        "label": label,
        "score": float(answer == label),
        "subsets": list(truth.subsets),
    }


def shares(metric: str) -> tuple[Share, ...]:
    """`accuracy` counts every question, any other metric those of its subset."""
    if metric == "accuracy":
        return (Share(),)
    return (Share(of=partial(_within, metric)),) if metric in SUBSETS else ()


def _within(subset: str, prediction: Any) -> bool:
    return subset in prediction["subsets"]


SCORER = Scorer(score, shares, OfficialFiles(read_truths, read_submission, read_answer, judge))
