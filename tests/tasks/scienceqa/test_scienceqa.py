"""ScienceQA's files, prompt, subsets and accuracies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import UserError
from tasks.base import Example
from tasks.data.images import BLANK_IMAGE
from tasks.scienceqa.files import read_problems
from tasks.scienceqa.scorer import SCORER, read_submission, read_truths
from tasks.scienceqa.scoring import score
from tasks.scienceqa.task import Option, ScienceQA

PROBLEM: dict[str, Any] = {
    "question": "Which is hot?",
    "choices": ["ice", "fire"],
    "answer": 1,
    "hint": "",
    "image": None,
    "grade": "grade6",
    "subject": "natural science",
    "split": "test",
}


def write(root: Path, **problems: dict[str, Any]) -> None:
    contents = {name.removeprefix("p"): {**PROBLEM, **changes} for name, changes in problems.items()}
    (root / "problems.json").write_text(json.dumps(contents))
    splits = {split: [i for i, each in contents.items() if each["split"] == split] for split in SPLITS}
    (root / "pid_splits.json").write_text(json.dumps(splits))


SPLITS = ("train", "val", "test")


def test_prompt_and_subsets(tmp_path: Path) -> None:
    write(tmp_path, p1={}, p2={"hint": "Fire burns.", "image": "image.png", "grade": "grade7"})
    problems, _ = read_problems(tmp_path / "problems.json")
    assert problems["1"].prompt == "Question: Which is hot?\nOptions: (A) ice (B) fire\nContext: N/A"
    assert problems["1"].subsets == ("NAT", "NO", "G1-6")
    assert problems["2"].prompt.endswith("Context: Fire burns.")
    assert problems["2"].subsets == ("NAT", "TXT", "IMG", "G7-12")


def test_questions_without_a_picture_get_a_blank_one(tmp_path: Path) -> None:
    write(tmp_path, p1={"split": "train"}, p2={"split": "val"}, p3={"image": "image.png"})
    splits = ScienceQA().load(tmp_path).splits
    assert splits["train"][0].images == (BLANK_IMAGE,)
    assert splits["test"][0].images == (tmp_path / "images" / "test" / "3" / "image.png",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 2}, "index of one of 2 choices"),
        ({"choices": ["ice"]}, "2 to 5 strings"),
        ({"grade": "grade13"}, "grade1 to grade12"),
        ({"grade": f"grade{'9' * 5000}"}, "grade1 to grade12"),
        ({"subject": "art"}, "a subject is one of"),
        ({"image": "../image.png"}, "a file name or null"),
    ],
)
def test_files_are_checked(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, p1=changes)
    with pytest.raises(UserError, match=message) as caught:
        read_problems(tmp_path / "problems.json")
    assert "problem 1" in str(caught.value)


def test_accuracies_by_hand() -> None:
    rows = [
        {"id": "1", "prediction": "A", "label": "A", "score": 1.0, "subsets": ["NAT", "IMG", "G1-6"]},
        {"id": "2", "prediction": None, "label": "A", "score": 0.0, "subsets": ["NAT", "NO", "G7-12"]},
        {"id": "3", "prediction": "B", "label": "B", "score": 1.0, "subsets": ["LAN", "NO", "G7-12"]},
    ]
    expected = {"accuracy": 200 / 3, "NAT": 50, "LAN": 100, "IMG": 100, "NO": 50, "G1-6": 100, "G7-12": 50}
    assert score(rows) == pytest.approx(expected)
    for metric in expected:
        (share,) = SCORER.shares(metric)
        values = [share.value(row) for row in rows if share.of(row)]
        assert 100 * sum(values) / len(values) == pytest.approx(expected[metric])


def test_likelihood_never_chooses_an_option_that_is_missing() -> None:
    examples = [Example("1", "", (), Option(0, (), 2), "")]
    assert ScienceQA().choices(torch.tensor([[0.0, 1.0, 5.0, 0.0, 0.0]]), examples) == [1]


@pytest.mark.parametrize(
    ("text", "index"),
    [("b", 1), ("(C)", 2), ("The answer is A.", 0), ("E. because", 4), ("because", None), ("", None)],
)
def test_letters_are_read_from_written_answers(text: str, index: int | None) -> None:
    assert ScienceQA().class_of(text) == index


def test_results_are_read_back_and_judged(tmp_path: Path) -> None:
    write(tmp_path, p1={}, p2={"split": "train"})
    written = tmp_path / "results.json"
    ScienceQA().write_submission([{"id": "1", "prediction": "B"}, {"id": "2", "prediction": None}], written)
    assert json.loads(written.read_text()) == {"results": {"1": 1, "2": -1}}
    assert read_submission(written) == {"1": "B", "2": None}
    truths = read_truths(tmp_path / "problems.json")
    assert list(truths) == ["1"]
    assert SCORER.files is not None
    assert SCORER.files.judge("1", "B", truths["1"])["score"] == 1.0
