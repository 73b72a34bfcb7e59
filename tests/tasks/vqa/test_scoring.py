"""VQA's official normalisation and soft accuracy: each quirk by hand, and properties for any input."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UserError
from tasks.vqa.scoring import normalize_answer, score, soft_accuracy


def annotators(*answers: str) -> list[tuple[int, str]]:
    return list(enumerate(answers, start=1))


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [
        ("Yes", "yes"),
        (" red\n", "red"),
        ("red\tblue", "red blue"),
        # A mark beside a space anywhere is deleted, all its occurrences with it …
        ("red, blue", "red blue"),
        ("black-white - grey", "blackwhite grey"),
        # … and becomes a space where it stands beside none.
        ("black/white", "black white"),
        ("t-shirt", "t shirt"),
        ("what?", "what"),
        # A comma between digits has every mark deleted.
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),
        # The digits are looked for in the text as it came, so deleting one mark does not help another.
        ("1;,2", "1 2"),
        # Whether a space is near is judged by the text as it came: ';' was no space.
        ("a;-b", "b"),
        # Periods go unless a digit follows.
        ("st. louis", "st louis"),
        ("3.5", "3.5"),
        ("5.", "5"),
        (".5", ".5"),
        ("u.s.a.", "usa"),
        # `sub` is given re.UNICODE (32) as its count.
        ("." * 33, "."),
        # Colon and apostrophe are not among the marks.
        ("10:30", "10:30"),
        ("men's", "men's"),
        # Number words and articles, as whole words only.
        ("none", "0"),
        ("Two dogs", "2 dogs"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("the man on a horse", "man on horse"),
        ("an", ""),
        ("theatre", "theatre"),
        # Contractions.
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("y'alld've", "y'all'd've"),
        ("ow's'at", "'ow's'at"),
        # An entry that takes the apostrophe away, one that is missing, and those that lower case hides.
        ("somebody'd", "somebodyd"),
        ("shes", "shes"),
        ("Im Ive", "im ive"),
        ("I'dve", "i'dve"),
    ],
)
def test_normalisation_by_hand(answer: str, normalised: str) -> None:
    assert normalize_answer(answer) == normalised


@pytest.mark.parametrize(
    ("matches", "accuracy"),
    # m annotators agree: (10 − m) subsets hold m of them, m subsets hold m − 1.
    [(0, 0.0), (1, 9 / 30), (2, (8 * 2 + 2 * 1) / 30), (3, (7 * 3 + 3 * 2) / 30), (4, 1.0), (10, 1.0)],
)
def test_leave_one_annotator_out_by_hand(matches: int, accuracy: float) -> None:
    answers = annotators(*["cat"] * matches, *[f"other {k}" for k in range(10 - matches)])
    assert soft_accuracy("cat", answers) == pytest.approx(accuracy, abs=1e-15)


def test_normalisation_applies_only_where_annotators_disagree() -> None:
    assert soft_accuracy("2", annotators(*["two"] * 10)) == 0
    assert soft_accuracy("two", annotators(*["two"] * 10)) == 1
    assert soft_accuracy("2", annotators(*["two"] * 9, "2")) == 1
    assert soft_accuracy("the two", annotators(*["two"] * 9, "three")) == 1


def test_line_ends_and_outer_spaces_never_count() -> None:
    assert soft_accuracy(" cat\n", annotators(*["cat "] * 5, *["\tcat"] * 5)) == 1


def test_annotators_are_identified_by_id_and_not_by_answer() -> None:
    # With the same id, all three would be left out together: subsets of 0 or 3 matches instead of 2.
    apart = [(1, "cat"), (2, "cat"), (3, "cat"), *((k, f"x{k}") for k in range(4, 11))]
    same = [(1, "cat"), (1, "cat"), (1, "cat"), *((k, f"x{k}") for k in range(4, 11))]
    assert soft_accuracy("cat", apart) == pytest.approx(0.9)
    assert soft_accuracy("cat", same) == pytest.approx(0.7)


texts = st.text(alphabet="abcdetwohn 0123.,;-/'?\n", max_size=12) | st.sampled_from(
    ["two", "2", "the cat", "cat"]
)
ten_answers = st.lists(texts, min_size=10, max_size=10)


@given(answer=texts, answers=ten_answers, seed=st.integers(0, 99))
def test_accuracy_lies_in_the_unit_interval_whatever_the_order_of_annotators(
    answer: str, answers: list[str], seed: int
) -> None:
    pairs = annotators(*answers)
    accuracy = soft_accuracy(answer, pairs)
    assert 0 <= accuracy <= 1
    random.Random(seed).shuffle(pairs)
    assert soft_accuracy(answer, pairs) == accuracy


@given(st.text(max_size=20))
def test_normalised_answers_have_no_outer_or_double_spaces_and_no_capitals(text: str) -> None:
    words = normalize_answer(text)
    assert words == " ".join(words.split())
    assert words == words.lower() or not text.isascii()  # 'İ'.lower() has a lower case of its own


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from(["yes/no", "number", "other"])), min_size=1, max_size=40
    ),
    st.integers(0, 99),
)
def test_score_does_not_depend_on_the_order_of_predictions(rows: list[tuple[float, str]], seed: int) -> None:
    predictions = [{"id": str(k), "score": s, "answer_type": t} for k, (s, t) in enumerate(rows)]
    scores = score(predictions)
    assert all(0 <= value <= 100 for value in scores.values())
    random.Random(seed).shuffle(predictions)
    assert score(predictions) == scores


def test_score_is_in_percent_overall_and_per_answer_type() -> None:
    rows = [(1.0, "yes/no"), (0.0, "yes/no"), (0.3, "number"), (0.9, "other")]
    predictions = [{"id": str(k), "score": s, "answer_type": t} for k, (s, t) in enumerate(rows)]
    assert score(predictions) == pytest.approx({"accuracy": 55, "yes/no": 50, "number": 30, "other": 90})


def test_unannotated_predictions_are_not_scored() -> None:
    with pytest.raises(UserError, match="question 7 has no annotations"):
        score([{"id": "7", "score": None, "answer_type": None}])
    with pytest.raises(UserError, match="no predictions"):
        score([])
