"""POPE's metrics (`evaluate.py` in github.com/RUCAIBox/POPE); "yes" is the positive answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.classification.scoring import accuracy, check_labelled
from tasks.pope.files import CATEGORIES


def score(predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """In percent: `accuracy`, `precision`, `recall`, `f1`, `yes` (share of that answer), `f1` by category.

    A ratio without a denominator is 0.
    """
    check_labelled(predictions)
    figures = {"accuracy": accuracy(predictions), **_ratios(predictions)}
    for category in CATEGORIES:
        part = [each for each in predictions if category_of(each) == category]
        if part and len(part) < len(predictions):
            figures[f"f1 ({category})"] = _ratios(part)["f1"]
    return figures


def category_of(prediction: Mapping[str, Any]) -> str:
    """The category that an id begins with."""
    return str(prediction["id"]).partition("-")[0]


def _ratios(predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    said = sum(each["prediction"] == "yes" for each in predictions)
    true = sum(each["label"] == "yes" for each in predictions)
    right = sum(each["prediction"] == each["label"] == "yes" for each in predictions)
    return {
        "precision": 100 * right / said if said else 0.0,
        "recall": 100 * right / true if true else 0.0,
        "f1": 200 * right / (said + true) if said + true else 0.0,
        "yes": 100 * said / len(predictions),
    }
