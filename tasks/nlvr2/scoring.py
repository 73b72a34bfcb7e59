"""NLVR2's accuracy and consistency (`nlvr2/eval/metrics.py` in github.com/lil-lab/nlvr), also by subset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.classification.scoring import accuracy, check_labelled, consistency
from tasks.nlvr2.files import SUBSETS, consistency_group


def score(predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """In percent: `accuracy`, `consistency`, and `accuracy (balanced)` and so on where subsets are known."""
    check_labelled(predictions)
    metrics = _both(predictions, "")
    for subset in SUBSETS:
        members = [prediction for prediction in predictions if subset in prediction.get("subsets", ())]
        if members:
            metrics |= _both(members, f" ({subset})")
    return metrics


def _both(predictions: Sequence[Mapping[str, Any]], suffix: str) -> dict[str, float]:
    return {
        f"accuracy{suffix}": accuracy(predictions),
        f"consistency{suffix}": consistency(predictions, consistency_group),
    }
