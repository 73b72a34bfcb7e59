from dataclasses import fields

import numpy as np
import pytest

from tasks.mini.captions import true_clauses
from tasks.mini.clauses import (
    Clause,
    Count,
    Exists,
    Listing,
    Located,
    Noun,
    Predicate,
    Related,
    caption_words,
)
from tasks.mini.world import PRETRAINING, Scene, Thing, sample_scene

SCENE = Scene(
    (
        Thing("circle", "red", "small", 8, 8),
        Thing("square", "blue", "large", 40, 11),
        Thing("circle", "blue", "small", 24, 56),
    )
)
RED_CIRCLE, BLUE_SQUARE = Noun("red", "circle"), Noun("blue", "square")


@pytest.mark.parametrize(
    "clause",
    [
        Exists(Noun("red", "circle", "small")),
        Count(Noun(shape="circle"), 2),
        Count(Noun(color="red"), 1),
        Related(RED_CIRCLE, BLUE_SQUARE, "left of"),
        Related(Noun(color="blue"), RED_CIRCLE, "below"),
        Located(RED_CIRCLE, "top", "left"),
        Located(Noun("blue", "circle"), "bottom", None),
        Predicate(Noun(shape="square"), "color", "blue"),
        Listing((RED_CIRCLE, BLUE_SQUARE)),
    ],
)
def test_holds(clause: Clause) -> None:
    assert clause.holds(SCENE)
    assert not clause.fails(SCENE)


@pytest.mark.parametrize(
    "clause",
    [
        Exists(Noun("red", "square")),
        Count(Noun(shape="circle"), 3),
        Related(RED_CIRCLE, BLUE_SQUARE, "right of"),
        Related(RED_CIRCLE, RED_CIRCLE, "above"),
        Located(RED_CIRCLE, "bottom", "left"),
        Predicate(Noun(shape="circle"), "size", "small"),  # "the circle" would need exactly one
        Listing((RED_CIRCLE, Noun("red", "square"))),
    ],
)
def test_fails(clause: Clause) -> None:
    assert clause.fails(SCENE)
    assert not clause.holds(SCENE)


def test_a_disputable_clause_neither_holds_nor_fails() -> None:
    slightly_above = Related(RED_CIRCLE, BLUE_SQUARE, "above")  # by 3 px
    middle = Located(Noun(), "top", None)
    for clause, scene in ((slightly_above, SCENE), (middle, Scene((Thing("star", "red", "small", 8, 33),)))):
        assert not clause.holds(scene)
        assert not clause.fails(scene)


def test_variants_change_one_field_of_the_clause() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        for clause in true_clauses(sample_scene(rng, PRETRAINING), rng):
            for _kind, word, variant in clause.variants():
                changed = [
                    f.name for f in fields(clause) if getattr(clause, f.name) != getattr(variant, f.name)
                ]
                assert len(changed) == 1
                assert all(set(word.split()) <= set(said.split()) for said in variant.wordings())


def test_articles_agree() -> None:
    said = {Exists(Noun("orange", "star")).text(np.random.default_rng(seed)) for seed in range(20)}
    assert all("an orange star" in text and "a orange" not in text for text in said)


def test_caption_words_are_plain_words() -> None:
    words = caption_words()
    assert words == sorted(set(words))
    assert all(word.isalpha() and word.islower() for word in words)
