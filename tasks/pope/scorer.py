"""How POPE's answers are scored from predictions and from files."""

from __future__ import annotations

from pathlib import Path

from harness.errors import UserError
from tasks.classification.scoring import judge_label
from tasks.data.files import field, read_json_lines
from tasks.pope.files import category_of, check_label, read_answer, read_questions
from tasks.pope.scoring import score
from tasks.scorer import Answers, OfficialFiles, Scorer, Share


def read_truths(path: Path) -> dict[str, str]:
    """Labels by id."""
    return {each.id: each.label for each in read_questions(path, category_of(path)).questions}


def read_submission(path: Path) -> Answers:
    """JSON lines with `question_id` and `answer`, whose text the official rule reads as yes or no."""
    answers: Answers = {}
    for place, entry in read_json_lines(path)[0]:
        identifier = field(entry, "question_id", str, place)
        if identifier in answers:
            raise UserError(f"{place}: question_id '{identifier}' appears twice")
        answers[identifier] = read_answer(field(entry, "answer", str, place))
    return answers


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


SCORER = Scorer(
    score,
    shares,
    OfficialFiles(
        read_truths,
        read_submission,
        lambda line, place: check_label(field(line, "prediction", str, place), place),
        judge_label,
    ),
)
