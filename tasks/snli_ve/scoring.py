"""SNLI-VE's accuracy, overall and per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.classification.scoring import accuracy, check_labelled, class_accuracies


def score(predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """In percent: `accuracy`, and `contradiction`, `entailment`, `neutral`: of the examples with that label."""
    check_labelled(predictions)
    return {"accuracy": accuracy(predictions), **class_accuracies(predictions)}
