"""ScienceQA's accuracies (`evaluate_acc.py` in github.com/lupantech/ScienceQA, used by LaVIN)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.classification.scoring import accuracy, check_labelled
from tasks.scienceqa.files import SUBSETS


def score(predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """In percent: `accuracy` over all questions, and of each subset that occurs, by its name in papers' tables.

    An answer that names no option is wrong; the official script guesses one at random.
    """
    check_labelled(predictions)
    figures = {"accuracy": accuracy(predictions)}
    for subset in SUBSETS:
        part = [each for each in predictions if subset in each["subsets"]]
        if part:
            figures[subset] = accuracy(part)
    return figures
