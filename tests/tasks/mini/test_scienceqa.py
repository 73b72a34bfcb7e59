"""Questions with options about drawn pictures."""

from __future__ import annotations

import json
from pathlib import Path

from tasks.mini.scienceqa import Sizes, ensure_scienceqa


def test_questions_have_different_options_and_the_pictures_they_name(tmp_path: Path) -> None:
    root = ensure_scienceqa(tmp_path, sizes=Sizes(train=30, val=5, test=5))
    problems = json.loads((root / "problems.json").read_text())
    splits = json.loads((root / "pid_splits.json").read_text())
    assert [len(splits[split]) for split in ("train", "val", "test")] == [30, 5, 5]
    for identifier, problem in problems.items():
        choices = problem["choices"]
        assert 2 <= len(choices) <= 4
        assert len(set(choices)) == len(choices)
        if problem["image"] is not None:
            assert (root / "images" / problem["split"] / identifier / "image.png").is_file()
        assert (problem["image"] is None) == (problem["subject"] == "language science")
    words = [each for each in problems.values() if each["question"] == "Which color does the sentence name?"]
    assert words
    assert all(f"is {each['choices'][each['answer']]}." in each["hint"] for each in words)
