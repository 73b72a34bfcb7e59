"""What a run on Slurm keeps beside its records."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.experiment.slurm import files
from harness.experiment.slurm.files import JobFiles, ProgressReader, ProgressWriter


def test_jobs_come_back_as_they_were_written(tmp_path: Path) -> None:
    kept = JobFiles(tmp_path)
    assert kept.jobs() == {}
    with kept.submitting():
        kept.write_jobs({"00ff": "12_0"})
    assert kept.jobs() == {"00ff": "12_0"}


def test_who_submits_jobs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SUBMITTING", 0.0)
    told = f"on {socket.gethostname()}, process {os.getpid()} is submitting jobs"
    with (
        JobFiles(tmp_path).submitting(),
        pytest.raises(UserError) as refusal,
        JobFiles(tmp_path).submitting(),
    ):
        pass
    assert told in str(refusal.value)


def test_a_file_system_without_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UserError, match=r"cannot lock files .*--results"), JobFiles(tmp_path).submitting():
        pass


@pytest.mark.parametrize("content", ["", "[1]", '{"00ff": 3}'])
def test_a_damaged_list_of_jobs_is_named(tmp_path: Path, content: str) -> None:
    kept = JobFiles(tmp_path)
    kept.folder.mkdir()
    (kept.folder / "jobs.json").write_text(content)
    with pytest.raises(UserError, match=r"jobs\.json.*remove it"):
        kept.jobs()


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
