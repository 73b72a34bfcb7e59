"""Files of a run on Slurm: the job of each cell, and the progress that jobs report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import disk_errors, read_json, write_atomically
from harness.locks import LockHeldError, take_lock

_SUBMITTING = 60.0
"""Seconds to wait for another process that submits jobs for the same results."""


class JobFiles:
    """The folder `slurm/` of a results folder.

    jobs.json: cell id → job id. progress/: one file per cell, one JSON list per line. logs/: submitit's files, with
    the output of each job.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root.absolute() / "slurm"
        self.logs = self.folder / "logs"
        self._jobs = self.folder / "jobs.json"

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """A lock, so that only one process at a time checks which jobs exist and submits the missing ones.

        Raises:
            UserError: another process holds the lock for too long, the folder cannot be written, or its file system
                has no locks.
        """
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock = take_lock(self.folder / "lock", _SUBMITTING)
            except LockHeldError as holder:
                raise UserError(f"{self.folder}: {holder} is submitting jobs; try again later.") from None
        try:
            yield
        finally:
            lock.release()

    def jobs(self) -> dict[str, str]:
        """Cell id → id of the last job that was submitted for the cell.

        Raises:
            UserError: the file is damaged.
        """
        if not self._jobs.exists():
            return {}
        try:
            content = read_json(self._jobs).value
        except UserError as error:
            raise UserError(f"{str(error).rstrip('.')}; remove it to submit anew.") from None
        if not isinstance(content, dict) or not all(isinstance(job, str) for job in content.values()):
            raise UserError(f"{self._jobs}: expected cell ids and job ids; remove it to submit anew.")
        return content

    def write_jobs(self, jobs: Mapping[str, str]) -> None:
        """Replace the content of jobs.json."""
        write_atomically(self._jobs, json.dumps(dict(jobs), indent=1).encode())

    def progress(self, cell_id: str) -> Path:
        """The file to which a cell's job appends its progress."""
        return self.folder / "progress" / f"{cell_id}.jsonl"

    def output(self, job: str) -> Path:
        """The file with the standard error of a job's first process."""
        return self.logs / f"{job}_0_log.err"


class ProgressWriter:
    """Appends messages to a cell's progress file; an earlier attempt's messages are removed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        self._path = path

    def __call__(self, message: tuple[Any, ...]) -> None:
        """Append one message of JSON values."""
        with self._path.open("a") as file:  # a network file system shares it when it is closed
            file.write(json.dumps(message) + "\n")


class ProgressReader:
    """Reads what was appended to a progress file since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def __call__(self) -> list[list[Any]]:
        """New messages in order; none if there is no file yet. A file that was started again is read from its start."""
        try:
            with self._path.open("rb") as file:
                if self._path.stat().st_size < self._position:
                    self._position = 0
                file.seek(self._position)
                content = file.read()
        except FileNotFoundError:
            return []
        complete = content[: content.rfind(b"\n") + 1]
        self._position += len(complete)
        return [json.loads(line) for line in complete.splitlines()]
