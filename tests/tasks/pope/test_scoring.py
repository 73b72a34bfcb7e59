"""POPE's metrics by hand, and its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import UserError
from tasks.pope.files import read_answer, read_questions
from tasks.pope.scorer import read_submission, shares
from tasks.pope.scoring import score
from tasks.pope.task import POPE


def predictions() -> list[dict[str, object]]:
    """Three yes in truth, of which two are said; two no, of which one is said to be yes."""
    pairs = [("yes", "yes"), ("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes")]
    return [
        {
            "id": f"{'random' if k < 3 else 'popular'}-{k}",
            "label": label,
            "prediction": said,
            "score": float(label == said),
        }
        for k, (label, said) in enumerate(pairs)
    ]


def test_metrics_by_hand() -> None:
    figures = score(predictions())
    assert figures == pytest.approx(
        {
            "accuracy": 60.0,
            "precision": 200 / 3,
            "recall": 200 / 3,
            "f1": 200 / 3,
            "yes": 60.0,
            "f1 (random)": 80.0,
            "f1 (popular)": 0.0,
        }
    )


def test_always_no_has_no_precision() -> None:
    figures = score([{"id": "random-1", "label": "yes", "prediction": "no", "score": 0.0}])
    assert (figures["precision"], figures["recall"], figures["f1"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("metric", ["accuracy", "precision", "recall", "yes"])
def test_shares_add_up_to_the_metric(metric: str) -> None:
    (share,) = shares(metric)
    values = [share.value(each) for each in predictions() if share.of(each)]
    assert 100 * sum(values) / len(values) == pytest.approx(score(predictions())[metric])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("yes", "yes"),
        ("No, there is none", "no"),
        ("There is not a dog. Yes", "no"),
        ("A dog. no", "yes"),
        ("", "yes"),
    ],
)
def test_answers_are_read_by_the_official_rule(text: str, answer: str) -> None:
    assert read_answer(text) == answer


def test_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "coco_pope_random.json"
    line = {
        "question_id": 1,
        "image": "COCO_val2014_000000000007.jpg",
        "text": "Is there a dog?",
        "label": "yes",
    }
    path.write_text(json.dumps(line) + "\n")
    (question,) = read_questions(path, "random").questions
    assert (question.id, question.image) == ("random-1", "val2014/COCO_val2014_000000000007.jpg")
    for change in ({"label": "maybe"}, {"image": "../x.jpg"}):
        path.write_text(json.dumps({**line, **change}) + "\n")
        with pytest.raises(UserError, match="line 1"):
            read_questions(path, "random")
    path.write_text(2 * (json.dumps(line) + "\n"))
    with pytest.raises(UserError, match="question_id 1 appears twice"):
        read_questions(path, "random")


def test_training_questions_must_be_given(tmp_path: Path) -> None:
    for category in ("random", "popular", "adversarial"):
        line = {"question_id": 1, "image": "COCO_val2014_000000000007.jpg", "text": "?", "label": "yes"}
        (tmp_path / f"coco_pope_{category}.json").write_text(json.dumps(line))
    with pytest.raises(UserError, match=r"no coco_pope_train\.json"):
        POPE().load(tmp_path)


def test_submission_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    written = [{"id": "random-1", "text": "Is there a dog?", "prediction": "no"}]
    POPE().write_submission(written, path)
    assert read_submission(path) == {"random-1": "no"}
