"""How POPE's answers are scored from predictions and from files."""

from __future__ import annotations

from pathlib import Path

from tasks.classification.label_files import label_files, read_label_lines
from tasks.data.files import field
from tasks.pope.files import category_of, check_label, read_answer, read_questions
from tasks.pope.scoring import score
from tasks.scorer import Answers, Scorer, Share


def read_truths(path: Path) -> dict[str, str]:
    """Labels by id."""
    return {each.id: each.label for each in read_questions(path, category_of(path)).questions}


def read_submission(path: Path) -> Answers:
    """JSON lines with `question_id` and `answer`, whose text the official rule reads as yes or no."""
    return read_label_lines(
        path, "question_id", lambda entry, place: read_answer(field(entry, "answer", str, place))
    )


def shares(metric: str) -> tuple[Share, ...]:
    """Accuracy counts all questions, recall those answered "yes" in truth, precision those that are said to be."""
    match metric:
        case "accuracy":
            return (Share(),)
        case "recall":
            return (Share(of=lambda each: each["label"] == "yes"),)
        case "precision":
            return (Share(of=lambda each: each["prediction"] == "yes"),)
        case "yes":
            return (Share(value=lambda each: float(each["prediction"] == "yes")),)
    return ()


SCORER = Scorer(score, shares, label_files(read_truths, read_submission, check_label))
