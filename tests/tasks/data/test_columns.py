"""Examples by column: the same as parsed anew, and kept for files of the same bytes only."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import files
from harness.errors import UserError
from harness.registry import build_task
from harness.specs import parse_spec
from tasks.data import columns
from tasks.data.columns import Columns, groups_of, kept_arrays, number_distinct
from tests.tasks.nlvr2 import test_task as nlvr2
from tests.tasks.retrieval import test_task as retrieval
from tests.tasks.snli_ve import test_task as snli_ve


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def write_nlvr2(root: Path) -> None:
    statements = [nlvr2.entry(f"train-1-{pair}-0", directory="7") for pair in range(3)]
    nlvr2.write(root / "train.json", *statements)
    nlvr2.write(root / "balanced" / "balanced_train.json", statements[1])
    for split in ("dev", "test1"):
        nlvr2.write(root / f"{split}.json", nlvr2.entry(f"{split}-1-0-0", "False"))


def write_snli_ve(root: Path) -> None:
    for split in ("train", "dev", "test"):
        entries = [
            snli_ve.entry("1", "entailment"),
            snli_ve.entry("2", "-"),
            snli_ve.entry("3", "neutral", "7"),
        ]
        snli_ve.write(root, split, *entries)


def write_retrieval(root: Path) -> None:
    entries = [retrieval.entry(k, split) for k, split in enumerate(("test", "train", "val", "train"))]
    retrieval.write(root, *entries)


WRITERS = {"nlvr2": write_nlvr2, "snli_ve": write_snli_ve, "retrieval": write_retrieval}


@pytest.mark.parametrize("name", WRITERS)
def test_a_second_load_parses_nothing_and_gives_equal_examples(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, write = tmp_path / "data", WRITERS[name]
    root.mkdir()
    write(root)
    task = build_task(parse_spec(name))
    first = task.load(root)

    def parsed_again(path: Path) -> Any:
        pytest.fail(f"{path} is parsed again")

    monkeypatch.setattr(files, "read_json", parsed_again)
    monkeypatch.setattr(files, "read_json_lines", parsed_again)
    again = task.load(root)
    assert all(isinstance(examples, Columns) for examples in again.splits.values())
    assert again.provenance == first.provenance
    assert {key: list(each) for key, each in again.splits.items()} == {
        key: list(each) for key, each in first.splits.items()
    }


def test_a_full_cache_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise UserError(f"{path}: no space left on the disk")

    monkeypatch.setattr(columns, "write_atomically", full)
    assert kept_arrays(["key"], lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]
    assert kept_arrays(["key"], lambda: {"a": np.arange(2)})["a"].tolist() == [0, 1]


@pytest.mark.parametrize("name", WRITERS)
def test_images_are_found_where_the_data_are_now(name: str, tmp_path: Path) -> None:
    WRITERS[name](_made(tmp_path / "data"))
    task = build_task(parse_spec(name))
    paths = [example.images[0] for example in task.load(tmp_path / "data").splits["train"]]
    shutil.move(tmp_path / "data", tmp_path / "moved")
    moved = [example.images[0] for example in task.load(tmp_path / "moved").splits["train"]]
    assert moved == [tmp_path / "moved" / path.relative_to(tmp_path / "data") for path in paths]


def test_groups_are_those_of_the_rows_taken(tmp_path: Path) -> None:
    write_retrieval(_made(tmp_path / "data"))
    train = build_task(parse_spec("retrieval")).load(tmp_path / "data").splits["train"]
    assert groups_of(train) == groups_of(list(train)) == ["1", "1", "3", "3"]


def test_distinct_texts_are_numbered_as_they_occur() -> None:
    texts, places = number_distinct(["b", "a", "b"])
    assert (texts, places.tolist()) == (["b", "a"], [0, 1, 0])


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
