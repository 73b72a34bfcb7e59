"""How SNLI-VE's labels are scored from predictions and from files."""

from __future__ import annotations

from pathlib import Path

from harness.errors import UserError
from tasks.classification.scoring import judge_label
from tasks.data.files import field, read_json_lines
from tasks.scorer import Answers, OfficialFiles, Scorer, Share
from tasks.snli_ve.files import check_label, read_pairs
from tasks.snli_ve.scoring import score


def read_truths(path: Path) -> dict[str, str]:
    """Labels by pair id."""
    return {pair.id: pair.label for pair in read_pairs(path).pairs}


def read_submission(path: Path) -> Answers:
    """JSON lines with `pairID` and `prediction`."""
    answers: Answers = {}
    for place, entry in read_json_lines(path)[0]:
        identifier = field(entry, "pairID", str, place)
        if identifier in answers:
            raise UserError(f"{place}: pairID '{identifier}' appears twice")
        answers[identifier] = check_label(field(entry, "prediction", str, place), place)
    return answers


def shares(metric: str) -> tuple[Share, ...]:
    """`accuracy` counts every pair, any other metric the pairs with that label."""
    return (Share(),) if metric == "accuracy" else (Share(of=lambda each: each["label"] == metric),)


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
