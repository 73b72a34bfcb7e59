"""How SNLI-VE's labels are scored from predictions and from files."""

from __future__ import annotations

from pathlib import Path

from tasks.classification.label_files import label_files, read_label_lines
from tasks.data.files import field
from tasks.scorer import Answers, Scorer, Share
from tasks.snli_ve.files import check_label, read_pairs
from tasks.snli_ve.scoring import score


def read_truths(path: Path) -> dict[str, str]:
    """Labels by pair id."""
    return {pair.id: pair.label for pair in read_pairs(path).pairs}


def read_submission(path: Path) -> Answers:
    """JSON lines with `pairID` and `prediction`."""
    return read_label_lines(
        path, "pairID", lambda entry, place: check_label(field(entry, "prediction", str, place), place)
    )


def shares(metric: str) -> tuple[Share, ...]:
    """`accuracy` counts every pair, any other metric the pairs with that label."""
    return (Share(),) if metric == "accuracy" else (Share(of=lambda each: each["label"] == metric),)


SCORER = Scorer(score, shares, label_files(read_truths, read_submission, check_label))
