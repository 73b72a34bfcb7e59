"""How VQA's answers are scored from predictions and from the official files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.errors import UserError
from tasks.data.files import field, read_json
from tasks.scorer import Answers, OfficialFiles, Scorer, Share
from tasks.vqa.files import Annotation, read_annotations
from tasks.vqa.scoring import score, soft_accuracy


def read_truths(path: Path) -> dict[str, Annotation]:
    """Annotations by question id."""
    return {str(identifier): annotation for identifier, annotation in read_annotations(path).items()}


def read_submission(path: Path) -> Answers:
    """EvalAI's result file: `[{"question_id": int, "answer": str}]`."""
    content, _ = read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a list of objects with 'question_id' and 'answer'")
    answers: Answers = {}
    for index, entry in enumerate(content):
        place = f"{path}: [{index}]"
        identifier = field(entry, "question_id", int, place)
        if str(identifier) in answers:
            raise UserError(f"{place}: question_id {identifier} appears twice")
        answers[str(identifier)] = field(entry, "answer", str, place)
    return answers


def judge(identifier: str, answer: str, truth: Annotation) -> dict[str, Any]:
    """An answer with its soft accuracy."""
    return {
        "id": identifier,
        "answer": answer,
        "answer_type": truth.answer_type,
        "score": soft_accuracy(answer, truth.answers),
    }


def shares(metric: str) -> tuple[Share, ...]:
    """`accuracy` counts every question, any other metric the questions of that answer type."""
    if metric == "accuracy":
        return (Share(),)
    return (Share(of=lambda each: each["answer_type"] == metric),)


SCORER = Scorer(
    score,
    shares,
    OfficialFiles(read_truths, read_submission, lambda line, place: field(line, "answer", str, place), judge),
)
