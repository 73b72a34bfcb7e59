"""How retrieval's ranks are scored from predictions and from Karpathy's files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from tasks.data.files import field
from tasks.retrieval.files import read_captions
from tasks.retrieval.scoring import RECALL_AT, score
from tasks.scorer import Answers, OfficialFiles, Prediction, Scorer, Share, own_id


@dataclass(frozen=True)
class CaptionTruth:
    """A caption's image, and all captions of that image."""

    image: str
    captions: frozenset[str]


def read_truths(path: Path) -> dict[str, CaptionTruth]:
    """What is right for each caption of the test split, by caption id."""
    truths: dict[str, CaptionTruth] = {}
    for photograph in read_captions(path).of("test"):
        ids = [str(caption.id) for caption in photograph.captions]
        truth = CaptionTruth(str(photograph.id), frozenset(ids))
        truths |= dict.fromkeys(ids, truth)
    return truths


def refuse_submission(path: Path) -> Answers:
    """Retrieval has no official submission file."""
    raise UserError(f"{path}: expected JSON lines with 'id', 'top_images' and 'top_captions'")


def read_candidates(line: Any, place: str) -> dict[str, list[str]]:
    """The best images and captions in one line of predictions."""
    candidates: dict[str, list[str]] = {}
    for key in ("top_images", "top_captions"):
        candidates[key] = [str(each) for each in field(line, key, list, place)]
        if len(set(candidates[key])) < len(candidates[key]):
            raise UserError(f"{place}: '{key}' contains a candidate twice")
    return candidates


def judge(identifier: str, answer: dict[str, list[str]], truth: CaptionTruth) -> dict[str, Any]:
    """Ranks of the right image and of the first right caption; None if not among the candidates."""

    def first(candidates: list[str], right: frozenset[str]) -> int | None:
        return next((place for place, each in enumerate(candidates, start=1) if each in right), None)

    return {
        "id": identifier,
        "group": truth.image,
        "image_rank": first(answer["top_images"], frozenset({truth.image})),
        "text_rank": first(answer["top_captions"], truth.captions),
    }


def shares(metric: str) -> tuple[Share, ...]:
    """Image retrieval counts captions, text retrieval images. `R@1` is the mean of both, `rsum` the sum of six."""
    if metric == "rsum":
        return tuple(_recall(direction, k) for direction in ("TR", "IR") for k in RECALL_AT)
    if metric == "R@1":
        return (_recall("TR", 1, 0.5), _recall("IR", 1, 0.5))
    direction, _, k = metric.partition("@")
    return (
        (_recall(direction, int(k)),) if direction in ("TR", "IR") and re.fullmatch("[0-9]{1,9}", k) else ()
    )


def _recall(direction: str, k: int, weight: float = 1.0) -> Share:
    key = "text_rank" if direction == "TR" else "image_rank"

    def hit(prediction: Prediction) -> float:
        return float(prediction[key] is not None and prediction[key] <= k)

    unit = (lambda each: str(each["group"])) if direction == "TR" else own_id
    return Share(hit, unit, weight=weight)


SCORER = Scorer(score, shares, OfficialFiles(read_truths, refuse_submission, read_candidates, judge))
