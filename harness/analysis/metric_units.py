"""What each metric counts, so that it can be resampled: images, captions, sentences, examples of a class.

A metric is a weighted sum of shares of units. A unit is one example or several (NLVR2's consistency: the
examples of a sentence; text retrieval: the captions of an image), and counts with the lowest of their values.
Every figure made from these units is checked against the one that the task's own score function gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import UserError
from harness.records.record import TaskChoice
from tasks.nlvr.files import boxes_of, sentence_of
from tasks.nlvr2.files import consistency_group
from tasks.retrieval.scoring import RECALL_AT

Prediction = Mapping[str, Any]


def _score(prediction: Prediction) -> float:
    return float(prediction["score"])


def _own_id(prediction: Prediction) -> str:
    return str(prediction["id"])


@dataclass(frozen=True)
class Share:
    """The mean value of units, in percent, times `weight`.

    value: of one example, in [0, 1]. unit: name of the unit that an example belongs to. of: whether it counts.
    """

    value: Callable[[Prediction], float] = _score
    unit: Callable[[Prediction], str] = _own_id
    of: Callable[[Prediction], bool] = lambda each: True
    weight: float = 1.0


def shares_of(task: TaskChoice, metric: str) -> tuple[Share, ...]:
    """The shares that add up to a metric.

    Raises:
        UserError: it is not known what the metric counts.
    """
    found = _BUILT_IN.get(task.name, lambda metric: None)(metric)
    if found is not None:
        return found
    if metric == task.primary_metric:
        return (Share(),)
    raise UserError(f"{task.name}: it is not known which examples '{metric}' counts, so it has no interval.")


def _vqa(metric: str) -> tuple[Share, ...] | None:
    if metric == "accuracy":
        return (Share(),)
    return (Share(of=lambda each: each["answer_type"] == metric),)


def _snli_ve(metric: str) -> tuple[Share, ...] | None:
    return (Share(),) if metric == "accuracy" else (Share(of=lambda each: each["label"] == metric),)


def _nlvr2(metric: str) -> tuple[Share, ...] | None:
    what, _, subset = metric.removesuffix(")").partition(" (")

    def counts(prediction: Prediction) -> bool:
        return not subset or subset in prediction.get("subsets", ())

    if what == "accuracy":
        return (Share(of=counts),)
    if what == "consistency":
        return (Share(unit=lambda each: consistency_group(each["id"]), of=counts, value=_all_right),)
    return None


def _nlvr(metric: str) -> tuple[Share, ...] | None:
    units = {"consistency": sentence_of, "consistency (orders)": boxes_of}
    if metric not in units:
        return None
    return (Share(unit=lambda each: units[metric](each["id"]), value=_all_right),)


def _all_right(prediction: Prediction) -> float:
    return float(prediction["score"] == 1)


def _retrieval(metric: str) -> tuple[Share, ...] | None:
    if metric == "rsum":
        return tuple(_recall(direction, k) for direction in ("TR", "IR") for k in RECALL_AT)
    if metric == "R@1":
        return (_recall("TR", 1, 0.5), _recall("IR", 1, 0.5))
    direction, _, k = metric.partition("@")
    return (_recall(direction, int(k)),) if direction in ("TR", "IR") and k.isdigit() else None


def _recall(direction: str, k: int, weight: float = 1.0) -> Share:
    key = "text_rank" if direction == "TR" else "image_rank"

    def hit(prediction: Prediction) -> float:
        return float(prediction[key] is not None and prediction[key] <= k)

    unit = (lambda each: str(each["group"])) if direction == "TR" else _own_id
    return Share(hit, unit, weight=weight)


_BUILT_IN: Mapping[str, Callable[[str], tuple[Share, ...] | None]] = {
    "vqa": _vqa,
    "snli_ve": _snli_ve,
    "nlvr2": _nlvr2,
    "nlvr": _nlvr,
    "retrieval": _retrieval,
}
