"""Submission files of every task are written as a whole, wherever they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.registry import build_task
from harness.specs import parse_spec
from tasks.base import Task

PREDICTIONS: dict[str, dict[str, Any]] = {
    "vqa": {"id": "1", "answer": "yes"},
    "nlvr2": {"id": "dev-1-0-0", "prediction": "True"},
    "nlvr": {"id": "1-0", "prediction": "true"},
    "snli_ve": {"id": "1", "prediction": "neutral"},
    "retrieval": {"id": "1", "top_images": ["a"], "top_captions": ["1"]},
}


@pytest.fixture(params=PREDICTIONS)
def submission(request: pytest.FixtureRequest) -> tuple[Task, list[dict[str, Any]]]:
    return build_task(parse_spec(request.param)), [PREDICTIONS[request.param]]


def test_a_missing_folder_is_made_and_a_link_written_through(
    submission: tuple[Task, list[dict[str, Any]]], tmp_path: Path
) -> None:
    task, predictions = submission
    new, link, target = tmp_path / "a" / "b" / "file", tmp_path / "link", tmp_path / "target"
    task.write_submission(predictions, new)
    link.symlink_to(target)
    task.write_submission(predictions, link)
    assert link.is_symlink()
    assert target.read_bytes() == new.read_bytes() != b""


def test_a_folder_or_a_file_in_the_way_is_named(
    submission: tuple[Task, list[dict[str, Any]]], tmp_path: Path
) -> None:
    task, predictions = submission
    with pytest.raises(UserError, match="is a folder; name a file"):
        task.write_submission(predictions, tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="cannot be written"):
        task.write_submission(predictions, tmp_path / "file" / "submission")
    assert (tmp_path / "file").read_text() == "kept"
