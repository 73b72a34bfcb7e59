from __future__ import annotations

import numpy as np
import pytest

from tasks.mini.clauses import Located, Noun, Related
from tasks.mini.hypotheses import (
    CONTRADICTION,
    ENTAILMENT,
    NEUTRAL,
    All,
    Between,
    Definite,
    Hypothesis,
    Open,
    Placed,
)
from tasks.mini.world import Scene, Thing

CIRCLE = Thing("circle", "red", "small", 8, 8)
STAR = Thing("star", "blue", "large", 40, 24)
SCENE = Scene((CIRCLE, STAR))
TWO_STARS = Scene((STAR, Thing("star", "red", "large", 8, 56)))
CIRCLE_NOUN, STAR_NOUN, HEART = Noun(shape="circle"), Noun(shape="star"), Noun(shape="heart")


@pytest.mark.parametrize(
    ("hypothesis", "label"),
    [
        (Definite(CIRCLE_NOUN, "color", "red"), ENTAILMENT),
        (Definite(CIRCLE_NOUN, "color", "blue"), CONTRADICTION),
        (Definite(HEART, "color", "red"), NEUTRAL),
        (Placed(Located(CIRCLE_NOUN, "top", None)), ENTAILMENT),
        (Placed(Located(CIRCLE_NOUN, None, "right")), CONTRADICTION),
        (Placed(Located(HEART, "top", None)), NEUTRAL),
        (Between(Related(CIRCLE_NOUN, STAR_NOUN, "above")), ENTAILMENT),
        (Between(Related(CIRCLE_NOUN, STAR_NOUN, "right of")), CONTRADICTION),
        (Between(Related(CIRCLE_NOUN, HEART, "above")), NEUTRAL),
        (Between(Related(HEART, STAR_NOUN, "above")), NEUTRAL),
        (Between(Related(CIRCLE_NOUN, Noun("red"), "above")), None),  # the same thing
        (All(CIRCLE_NOUN, "color", "red"), None),  # "all" is not used for a single thing
        (All(HEART, "color", "red"), NEUTRAL),
        (Open(CIRCLE_NOUN, "color", "red", "heavy"), ENTAILMENT),
        (Open(CIRCLE_NOUN, "color", "blue", "heavy"), NEUTRAL),
        (Open(HEART, "color", "red", "heavy"), CONTRADICTION),
    ],
)
def test_labels(hypothesis: Hypothesis, label: int | None) -> None:
    assert hypothesis.label(SCENE) == label


def test_labels_if_a_description_matches_several_things() -> None:
    assert Definite(STAR_NOUN, "color", "red").label(TWO_STARS) is None
    assert Placed(Located(STAR_NOUN, "top", None)).label(TWO_STARS) is None
    assert Between(Related(STAR_NOUN, HEART, "above")).label(TWO_STARS) is None
    assert All(STAR_NOUN, "size", "large").label(TWO_STARS) == ENTAILMENT
    assert All(STAR_NOUN, "color", "red").label(TWO_STARS) == CONTRADICTION
    assert Open(STAR_NOUN, "color", "red", "soft").label(TWO_STARS) == ENTAILMENT


def test_positions_that_differ_by_a_few_pixels_have_no_label() -> None:
    scene = Scene((Thing("circle", "red", "small", 34, 8), Thing("star", "blue", "large", 38, 40)))
    assert Placed(Located(CIRCLE_NOUN, None, "left")).label(scene) is None
    assert Between(Related(CIRCLE_NOUN, STAR_NOUN, "left of")).label(scene) is None


@pytest.mark.parametrize(
    ("hypothesis", "sentences"),
    [
        (Definite(CIRCLE_NOUN, "color", "red"), {"the circle is red", "the circle in the picture is red"}),
        (Definite(Noun("red"), "shape", "star"), {"the only red thing is a star"}),
        (Placed(Located(Noun("red"), "top", None)), {"the red thing lies at the top"}),
        (Between(Related(CIRCLE_NOUN, HEART, "above")), {"the circle is above the heart"}),
        (
            All(Noun("red"), "shape", "cross"),
            {"all red things are crosses", "every one of the red things is a cross"},
        ),
        (All(STAR_NOUN, "color", "red"), {"every one of the stars is red"}),
        (Open(HEART, "size", "small", "for sale"), {"there is a heart that is small or for sale"}),
        (
            Open(Noun("orange"), "shape", "star", "heavy"),
            {"there is an orange thing that is a star or heavy"},
        ),
    ],
)
def test_sentences(hypothesis: Hypothesis, sentences: set[str]) -> None:
    rng = np.random.default_rng(0)
    assert sentences <= {hypothesis.text(rng) for _ in range(60)}
