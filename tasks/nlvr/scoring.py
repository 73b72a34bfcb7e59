"""NLVR's accuracy and consistency (`nlvr/metrics_images.py` in github.com/lil-lab/nlvr)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.classification.scoring import accuracy, check_labelled, consistency
from tasks.nlvr.files import boxes_of, sentence_of


def score(predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """In percent: `accuracy` over images, `consistency` over sentences, `consistency (orders)` over statements.

    As in the official script, a sentence counts if all images of all its statements are correct. For the third
    figure, a statement counts if the six orders of its boxes are correct.
    """
    check_labelled(predictions)
    return {
        "accuracy": accuracy(predictions),
        "consistency": consistency(predictions, sentence_of),
        "consistency (orders)": consistency(predictions, boxes_of),
    }
