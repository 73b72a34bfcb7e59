"""Recall at K by hand, with several captions per image and with ties, and properties for any scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UserError
from tasks.retrieval.scorer import shares
from tasks.retrieval.scoring import chance_at_1, hit_at_1, rank, score


def test_ranks_by_hand_with_several_captions_an_image() -> None:
    # Images 0, 1, 2; captions a, b of 0; c, d of 1; e of 2.
    image_of = np.array([0, 0, 1, 1, 2])
    scores = np.array(
        [
            [0.9, 0.1, 0.5, 0.2, 0.3],
            [0.8, 0.0, 0.6, 0.7, 0.4],
            [0.1, 0.2, 0.3, 0.4, 0.35],
        ]
    )
    ranking = rank(scores, image_of)
    # Image 0: a is first. Image 1: a before d. Image 2: d before e.
    assert ranking.text_rank.tolist() == [1, 2, 2]
    # a → 0; b: 2 before 0 (its image second); c: 1 first; d: 1 first; e: 1 before 2.
    assert ranking.image_rank.tolist() == [1, 2, 1, 1, 2]
    assert ranking.top_captions.tolist() == [[0, 2, 4, 3, 1], [0, 3, 2, 4, 1], [3, 4, 2, 1, 0]]
    assert ranking.top_images[:, 0].tolist() == [0, 2, 1, 1, 1]


def test_ties_count_against_the_model() -> None:
    ranking = rank(np.zeros((3, 6)), np.array([0, 0, 1, 1, 2, 2]))
    assert ranking.text_rank.tolist() == [5, 5, 5]
    assert ranking.image_rank.tolist() == [3] * 6
    # The kept candidates tell the same: the right ones come last.
    assert ranking.top_captions.tolist() == [[2, 3, 4, 5, 0, 1], [0, 1, 4, 5, 2, 3], [0, 1, 2, 3, 4, 5]]
    # A right caption that ties with another right one loses nothing.
    ranking = rank(np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.5]]), np.array([0, 0, 1]))
    assert ranking.text_rank.tolist() == [1, 1]


def line(image: str, image_rank: int | None, text_rank: int | None) -> dict[str, Any]:
    return {"group": image, "image_rank": image_rank, "text_rank": text_rank}


def test_recalls_by_hand() -> None:
    predictions = [
        line("A", 1, 4),
        line("A", 7, 4),
        line("B", 2, 1),
        line("B", None, 1),  # beyond the kept candidates
        line("C", 1, None),
    ]
    metrics = score(predictions)
    assert metrics == pytest.approx(
        {
            "R@1": (100 / 3 + 40) / 2,
            "TR@1": 100 / 3,
            "TR@5": 200 / 3,
            "TR@10": 200 / 3,
            "IR@1": 40,
            "IR@5": 60,
            "IR@10": 80,
            "rsum": 100 * 5 / 3 + 180,
        }
    )
    assert [hit_at_1(each) for each in predictions] == [0.5, 0, 0.5, 0.5, 0.5]


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(UserError, match="no predictions"):
        score([])


@pytest.mark.parametrize(
    ("scores", "image_of", "message"),
    [
        (np.zeros((2, 3)), np.array([0, 1]), r"\(2, 3\) scores for \(2,\) captions"),
        (np.array([[0.0, np.nan], [0, 0]]), np.array([0, 1]), "1 scores are not a number"),
        (np.zeros((3, 3)), np.array([0, 1, 1]), "every image must have a caption"),
        (np.zeros((2, 3)), np.array([0, 1, 2]), "every image must have a caption"),
    ],
)
def test_what_does_not_fit_is_refused(scores: np.ndarray, image_of: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank(scores, image_of)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    image_of = np.repeat(np.arange(len(counts)), counts)
    values = st.lists(st.integers(-2, 2), min_size=len(image_of), max_size=len(image_of))
    rows = draw(st.lists(values, min_size=len(counts), max_size=len(counts)))
    return np.array(rows, dtype=np.float32), draw(st.permutations(image_of.tolist()).map(np.array))


@settings(deadline=None)
@given(matrices())
def test_rank_is_the_position_of_the_first_right_candidate_in_the_kept_list(
    drawn: tuple[np.ndarray, np.ndarray],
) -> None:
    scores, image_of = drawn
    ranking = rank(scores, image_of)
    for image, (place, kept) in enumerate(zip(ranking.text_rank, ranking.top_captions, strict=True)):
        right = np.flatnonzero(image_of[kept] == image)
        assert (right[0] + 1 if len(right) else None) == (place if place <= len(kept) else None)
        values = scores[image, kept]
        assert (values[:-1] >= values[1:]).all()
    for caption, (place, kept) in enumerate(zip(ranking.image_rank, ranking.top_images, strict=True)):
        assert kept[place - 1] == image_of[caption]  # at most 6 images: all are kept


@settings(deadline=None)
@given(matrices(), st.randoms(use_true_random=False))
def test_ranks_do_not_depend_on_the_order_of_images_and_captions(
    drawn: tuple[np.ndarray, np.ndarray], random: Any
) -> None:
    scores, image_of = drawn
    images, captions = list(range(scores.shape[0])), list(range(scores.shape[1]))
    random.shuffle(images)
    random.shuffle(captions)
    new_place = np.argsort(images)
    shuffled = rank(scores[np.ix_(images, captions)], new_place[image_of[captions]])
    ranking = rank(scores, image_of)
    assert shuffled.text_rank.tolist() == ranking.text_rank[images].tolist()
    assert shuffled.image_rank.tolist() == ranking.image_rank[captions].tolist()


def test_chance_is_what_random_scores_give() -> None:
    generator = np.random.default_rng(0)
    image_of = np.repeat(np.arange(10), 5)
    found = []
    for _ in range(300):
        ranking = rank(generator.random((10, 50)), image_of)
        found.append(50 * ((ranking.text_rank == 1).mean() + (ranking.image_rank == 1).mean()))
    assert np.mean(found) == pytest.approx(chance_at_1(10), abs=0.7)


@pytest.mark.parametrize("metric", ["TR@²", "TR@", "XR@1", f"IR@{'9' * 5000}", "IR@-1"])
def test_what_is_no_recall_has_no_shares(metric: str) -> None:
    assert shares("TR@5")
    assert shares(metric) == ()
