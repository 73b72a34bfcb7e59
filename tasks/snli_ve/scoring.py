"""SNLI-VE's accuracy, overall and per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.classification.scoring import accuracy, check_labelled, class_accuracies


def score(predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """In percent: `accuracy`, and that of the pairs with each label: `contradiction`, `entailment`, `neutral`."""
    check_labelled(predictions)
    return {"accuracy": accuracy(predictions), **class_accuracies(predictions)}
