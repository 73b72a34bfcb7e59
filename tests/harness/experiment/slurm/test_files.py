"""What a run on Slurm keeps beside its records."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UserError
from harness.experiment.slurm.files import JobFiles, ProgressReader, ProgressWriter


def test_jobs_come_back_as_they_were_written(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    assert files.jobs() == {}
    with files.submitting():
        files.write_jobs({"00ff": "12_0"})
    assert files.jobs() == {"00ff": "12_0"}


@pytest.mark.parametrize("content", ["", "[1]", '{"00ff": 3}'])
def test_a_damaged_list_of_jobs_is_named(tmp_path: Path, content: str) -> None:
    files = JobFiles(tmp_path)
    files.folder.mkdir()
    (files.folder / "jobs.json").write_text(content)
    with pytest.raises(UserError, match=r"jobs\.json.*remove it"):
        files.jobs()


def test_a_reader_returns_each_message_once_and_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "progress" / "00ff.jsonl"
    read = ProgressReader(path)
    assert read() == []
    send = ProgressWriter(path)
    send(("stage", "train", 96))
    assert read() == [["stage", "train", 96]]
    assert read() == []
    with path.open("a") as file:
        file.write('["adv')
    assert read() == []
    with path.open("a") as file:
        file.write('ance", 8]\n')
    assert read() == [["advance", 8]]


def test_a_second_attempt_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "00ff.jsonl"
    read = ProgressReader(path)
    ProgressWriter(path)(("epoch", {"epoch": 1, "train_loss": 2.5}))
    assert len(read()) == 1
    ProgressWriter(path)(("begin",))
    assert read() == [["begin"]]
