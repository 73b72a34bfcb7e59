"""Accuracy, accuracy by class and consistency of classified examples, in percent; pure functions.

A prediction has "id", "prediction" and, if the example is labelled, "label" and "score" (1 right, 0 wrong).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.errors import UserError

Predictions = Sequence[Mapping[str, Any]]


def check_labelled(predictions: Predictions) -> None:
    """Raises `UserError` if there are no predictions, or if an example has no label."""
    if not predictions:
        raise UserError("no predictions to score")
    for prediction in predictions:
        if prediction["score"] is None:
            raise UserError(f"example {prediction['id']} has no label, so accuracy is unknown here")


def accuracy(predictions: Predictions) -> float:
    """Share of correct examples."""
    return 100 * sum(prediction["score"] for prediction in predictions) / len(predictions)


def class_accuracies(predictions: Predictions) -> dict[str, float]:
    """Share of correct examples of each class, by label, in alphabetical order."""
    by_label: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for prediction in predictions:
        by_label[prediction["label"]].append(prediction)
    return {label: accuracy(by_label[label]) for label in sorted(by_label)}


def consistency(predictions: Predictions, group_of: Callable[[str], str]) -> float:
    """Share of groups with only correct examples. group_of: maps an example's id to its group."""
    all_right: dict[str, bool] = {}
    for prediction in predictions:
        group = group_of(prediction["id"])
        all_right[group] = all_right.get(group, True) and prediction["score"] == 1
    return 100 * sum(all_right.values()) / len(all_right)


def all_right(prediction: Mapping[str, Any]) -> float:
    """1 for a correct example, else 0: a unit counts if all its examples are correct."""
    return float(prediction["score"] == 1)


def judge_label(identifier: str, answer: str, truth: str) -> dict[str, Any]:
    """A prediction and whether it is correct."""
    return {"id": identifier, "prediction": answer, "label": truth, "score": float(answer == truth)}
