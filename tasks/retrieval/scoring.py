"""Recall at K of image-text retrieval, from a score matrix or from kept ranks; pure functions, no torch.

Ties count against the model: of candidates with equal scores, wrong ones come first. A model that gives every pair
the same score therefore finds nothing, whatever the order of the files. (In the published scripts `topk` breaks ties.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.errors import UserError

RECALL_AT = (1, 5, 10)


KEPT = max(RECALL_AT)
"""Number of candidates that predictions keep for each query."""


@dataclass(frozen=True)
class Ranking:
    """Ranks of the right candidates, counted from 1, and the best candidates of each query.

    text_rank: `(M,)` rank of each image's best own caption. top_captions: `(M, ≤ 10)` indices.
    image_rank: `(N,)` rank of each caption's image. top_images: `(N, ≤ 10)` indices.
    """

    text_rank: np.ndarray
    top_captions: np.ndarray
    image_rank: np.ndarray
    top_images: np.ndarray


def rank(scores: np.ndarray, image_of: np.ndarray) -> Ranking:
    """Ranks from `(M, N)` scores of M images against N captions.

    image_of: `(N,)` the row of each caption's image; every image must have a caption.
    Raises `ValueError` if shapes do not fit or a score is not a number.
    """
    if scores.ndim != 2 or image_of.shape != scores.shape[1:]:
        raise ValueError(f"{scores.shape} scores for {image_of.shape} captions")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} scores are not a number")
    if set(image_of.tolist()) != set(range(len(scores))):
        raise ValueError("every image must have a caption, and every caption an image")
    own = np.equal(image_of[None, :], np.arange(len(scores))[:, None])
    text_rank, top_captions = _rank_rows(scores, own)
    image_rank, top_images = _rank_rows(scores.T, own.T)
    return Ranking(text_rank, top_captions, image_rank, top_images)


def _rank_rows(scores: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each row's best right candidate, and the row's best candidates."""
    ranks = np.empty(len(scores), dtype=np.int64)
    top = np.empty((len(scores), min(KEPT, scores.shape[1])), dtype=np.int64)
    for row, (values, good) in enumerate(zip(scores, right, strict=True)):
        best = values[good].max()
        ranks[row] = 1 + np.count_nonzero(values[~good] >= best)
        top[row] = np.lexsort((good, -values))[: top.shape[1]]
    return ranks, top


def score(predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """In percent: text and image retrieval `TR@K`, `IR@K`, their sum `rsum`, and `R@1`, the mean of the two R@1.

    predictions: one per caption, with "group" (its image's id), "image_rank" (rank of its image for the caption) and
    "text_rank" (rank of the best own caption for the image); None is a rank beyond those kept.
    """
    if not predictions:
        raise UserError("no predictions to score")
    text_ranks = {each["group"]: each["text_rank"] for each in predictions}
    image_ranks = [each["image_rank"] for each in predictions]
    recalls = {f"TR@{k}": _recall(list(text_ranks.values()), k) for k in RECALL_AT}
    recalls |= {f"IR@{k}": _recall(image_ranks, k) for k in RECALL_AT}
    return {"R@1": (recalls["TR@1"] + recalls["IR@1"]) / 2, **recalls, "rsum": sum(recalls.values())}


def hit_at_1(prediction: Mapping[str, Any]) -> float:
    """Mean of a caption's two hits at 1. Its mean over captions is `R@1` if all images have equally many captions."""
    return ((prediction["text_rank"] == 1) + (prediction["image_rank"] == 1)) / 2


def chance_at_1(images: int) -> float:
    """Expected `R@1` in percent of a random order: in both directions 1 of `images` queries hits on average."""
    return 100 / images


def _recall(ranks: Sequence[int | None], k: int) -> float:
    return 100 * sum(rank is not None and rank <= k for rank in ranks) / len(ranks)
