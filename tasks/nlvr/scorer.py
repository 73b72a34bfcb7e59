"""How NLVR's labels are scored from predictions and from the official files."""

from __future__ import annotations

import re
from pathlib import Path

from tasks.classification.label_files import label_files
from tasks.classification.scoring import all_right
from tasks.nlvr.files import boxes_of, image_ids, read_predictions, read_statements, sentence_of
from tasks.nlvr.scoring import score
from tasks.nlvr2.files import parse_label
from tasks.scorer import Scorer, Share

UNITS = {"consistency": sentence_of, "consistency (orders)": boxes_of}
"""The unit of each consistency: it counts if all its images are correct."""


def read_truths(path: Path) -> dict[str, str]:
    """Labels by image id. An image id begins with the name of the split, with which the file's name begins too."""
    split = re.split("[._]", path.name)[0]
    statements = read_statements(path)[0].values()
    return {image: statement.label for statement in statements for image in image_ids(split, statement.id)}


def shares(metric: str) -> tuple[Share, ...]:
    """Accuracy counts images; the two consistencies count sentences and statements."""
    if metric == "accuracy":
        return (Share(),)
    if metric not in UNITS:
        return ()
    return (Share(unit=lambda each: UNITS[metric](each["id"]), value=all_right),)


SCORER = Scorer(score, shares, label_files(read_truths, read_predictions, parse_label))
