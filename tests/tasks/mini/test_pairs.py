from __future__ import annotations

import numpy as np
import pytest

from tasks.mini.clauses import Count, Exists, Located, Noun, Related
from tasks.mini.pairs import QUANTIFIED, Compared, PairStatement, Quantified, Total, phrase_of
from tasks.mini.world import Scene, Thing

CIRCLE, STAR = Thing("circle", "red", "small", 8, 8), Thing("star", "blue", "large", 40, 8)
WITH, WITHOUT = Scene((CIRCLE, STAR)), Scene((STAR,))
RED = Exists(Noun(color="red", shape="circle"))


@pytest.mark.parametrize(
    ("quantifier", "truths"),  # for pairs with a red circle in both, left, right, neither
    [
        ("both", (True, False, False, False)),
        ("neither", (False, False, False, True)),
        ("one", (False, True, True, False)),
        ("some", (True, True, True, False)),
        ("left", (True, True, False, False)),
        ("right", (True, False, True, False)),
    ],
)
def test_quantifiers(quantifier: str, truths: tuple[bool, ...]) -> None:
    statement = Quantified(quantifier, RED)
    pairs = [(WITH, WITH), (WITH, WITHOUT), (WITHOUT, WITH), (WITHOUT, WITHOUT)]
    assert tuple(statement.truth(left, right) for left, right in pairs) == truths
    templates, endings = QUANTIFIED[quantifier]
    assert len(statement.wordings()) == len(templates) + 2 * len(endings)  # "there is a …", "a … is shown"


def test_a_disputable_statement_has_no_truth() -> None:
    near = Scene((CIRCLE, Thing("star", "blue", "large", 12, 40)))  # 4 pixels to the right
    clause = Related(Noun(shape="circle"), Noun(shape="star"), "left of")
    assert Quantified("right", clause).truth(near, WITH) is None
    assert Quantified("right", clause).truth(WITH, WITH) is True


def test_totals_and_comparisons_count_both_pictures() -> None:
    star = Noun(shape="star")
    assert Total(star, 2).truth(WITH, WITHOUT) is True
    assert Total(star, 3).truth(WITH, WITHOUT) is False
    circle = Noun(shape="circle")
    assert [Compared(circle, how).truth(WITH, WITHOUT) for how in ("more left", "more right", "equal")] == [
        True,
        False,
        False,
    ]
    assert Compared(star, "equal").truth(WITH, WITHOUT) is True


@pytest.mark.parametrize(
    ("clause", "phrase"),
    [
        (RED, "a red circle"),
        (Count(Noun(shape="cross"), 2), "exactly two crosses"),
        (Count(Noun(shape="cross"), 1), "exactly one cross"),
        (Related(Noun(size="large"), Noun("blue", "heart"), "above"), "a large thing above a blue heart"),
        (Located(Noun(shape="star"), None, "left"), "a star on the left side"),
    ],
)
def test_phrases(clause: object, phrase: str) -> None:
    assert phrase_of(clause) == phrase  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        (Quantified("neither", RED), "no image contains a red circle"),
        (Quantified("both", RED), "a red circle is shown in both pictures"),
        (Quantified("left", Count(Noun("red"), 2)), "there are two red things in the left image"),
        (Quantified("one", Exists(Noun(color="orange"))), "exactly one picture has an orange thing"),
        (Total(Noun(shape="star"), 3), "there are exactly three stars in total"),
        (
            Compared(Noun(shape="square"), "more left"),
            "the left picture has more squares than the right one",
        ),
    ],
)
def test_sentences(statement: PairStatement, sentence: str) -> None:
    rng = np.random.default_rng(0)
    assert sentence in {statement.text(rng) for _ in range(100)}
