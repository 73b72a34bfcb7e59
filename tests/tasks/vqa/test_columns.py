"""Parsed questions by column: the same as parsed anew, and kept for files of the same bytes only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.vqa import files
from tasks.vqa.columns import load_split, soft_scores
from tasks.vqa.files import read_split
from tests.tasks.vqa.test_files import annotation, question, write


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def test_columns_hold_what_was_parsed(tmp_path: Path) -> None:
    write(tmp_path, [question(2, 7), question(1, 8)], [annotation(1, "a dog", 8), annotation(2, "Zürich", 7)])
    split, parsed = load_split(tmp_path, "train2014"), read_split(tmp_path, "train2014")
    assert split.files == parsed.files
    for row, expected in enumerate(parsed.questions):
        assert expected.annotation is not None
        assert split.arrays["question_id"][row] == expected.id
        assert split.arrays["image_id"][row] == expected.image_id
        assert split.texts[row] == expected.text
        assert split.given(row) == expected.annotation.answers
        assert split.answer_types[split.arrays["answer_type"][row]] == expected.annotation.answer_type
    assert split.majority_counts() == {"a dog": 1, "Zürich": 1}


def test_a_second_load_parses_nothing_and_a_changed_file_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [question(1)], [annotation(1, "cat")])
    first = load_split(tmp_path, "train2014")
    monkeypatch.setattr(files, "read_json", lambda path: pytest.fail("parsed again"))
    again = load_split(tmp_path, "train2014")
    assert first.arrays.keys() == again.arrays.keys()
    assert all(np.array_equal(first.arrays[key], again.arrays[key]) for key in first.arrays)
    monkeypatch.undo()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    write(tmp_path, [question(1)], [annotation(1, "dog")])
    assert load_split(tmp_path, "train2014").answers == ["dog"]


def test_a_damaged_or_read_only_cache_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [question(1)], [annotation(1, "cat")])
    load_split(tmp_path, "train2014")
    (kept,) = (tmp_path / "cache" / "parsed").iterdir()
    kept.write_bytes(kept.read_bytes()[:-30])
    assert load_split(tmp_path, "train2014").answers == ["cat"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    assert load_split(tmp_path, "train2014").answers == ["cat"]


def test_soft_scores_count_normalised_answers_inside_the_vocabulary(tmp_path: Path) -> None:
    given = ["The Cat", "cat", "cat", "a cat", "two", "2", "dog", "emu", "emu", "emu"]
    entry = annotation(1, "cat")
    entry["answers"] = [{"answer": text, "answer_id": k} for k, text in enumerate(given, start=1)]
    write(tmp_path, [question(1)], [entry])
    (classes,) = load_split(tmp_path, "train2014").classes({"cat": 0, "2": 1, "dog": 2, "emu": 3})
    assert soft_scores(classes) == {0: 1.0, 1: 0.6, 2: 0.3, 3: 0.9}
    (classes,) = load_split(tmp_path, "train2014").classes({"cow": 0})
    assert soft_scores(classes) == {}
    (classes,) = load_split(tmp_path, "train2014").classes({"cat": 0, "2": 1, "dog": 2, "emu": 3}, raw=True)
    assert soft_scores(classes) == {0: 0.6, 1: 0.3, 2: 0.3, 3: 0.9}
