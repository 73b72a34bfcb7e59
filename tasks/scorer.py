"""How a task's predictions are scored. Needs no model and does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Prediction = Mapping[str, Any]
"""One example's prediction: always has "id" and "group"; each task adds its own keys."""


Answers = dict[str, Any]
"""Answers by example id."""


def _score(prediction: Prediction) -> float:
    return float(prediction["score"])


def own_id(prediction: Prediction) -> str:
    """Each example is one unit."""
    return str(prediction["id"])


@dataclass(frozen=True)
class Share:
    """What a metric counts: the mean value of units, in percent, times `weight`.

    A unit is one example or several (NLVR2's consistency: the examples of a sentence; text retrieval: the
    captions of an image). Its value is the lowest of its examples' values. A metric is the sum of its shares.

    value: of one example, in [0, 1].
    unit: name of the unit that an example belongs to.
    of: True for the examples that count.
    """

    value: Callable[[Prediction], float] = _score
    unit: Callable[[Prediction], str] = own_id
    of: Callable[[Prediction], bool] = lambda each: True
    weight: float = 1.0


@dataclass(frozen=True)
class OfficialFiles:
    """How a task's official files are read by `harness score`, which scores without a model.

    read_truths: the annotation file, as truths by example id.
    read_submission: the submission file, as answers by example id.
    read_answer: the answer in one line of the harness's own predictions; also gets the line's place for messages.
    judge: id, answer and truth → a prediction as `Scorer.score` expects it.
    The readers raise `UserError` naming the file and place at fault.
    """

    read_truths: Callable[[Path], Mapping[str, Any]]
    read_submission: Callable[[Path], Answers]
    read_answer: Callable[[Any, str], Any]
    judge: Callable[[str, Any, Any], dict[str, Any]]


@dataclass(frozen=True)
class Scorer:
    """How a task's predictions are scored.

    score: metrics in percent from per-example predictions; a pure function. Has the task's primary metric.
    shares: the shares that add up to a metric, used for its interval and its significance tests; () if unknown.
        The primary metric needs none if it is the mean of the predictions' "score".
    files: None if `harness score` cannot score this task from files.
    """

    score: Callable[[Sequence[Prediction]], dict[str, float]]
    shares: Callable[[str], tuple[Share, ...]] = lambda metric: ()
    files: OfficialFiles | None = None
