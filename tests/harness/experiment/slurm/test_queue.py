"""States of jobs from what Slurm's commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.experiment.slurm.queue import JobState, SlurmError, job_states, slurm_command


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands that comes first on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def put(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


SQUEUE = """
echo '7|0|RUNNING|None'
echo '7|1|PENDING|Resources'
echo '8|N/A|PENDING|Dependency'
echo '9|N/A|OUT_OF_MEMORY|None'
"""


def test_arrays_single_jobs_and_ended_ones(commands: Path) -> None:
    put(commands, "squeue", SQUEUE)
    states = job_states(["7_0", "7_1", "8", "9"])
    assert states["7_0"] == JobState("RUNNING", "None")
    assert [states[job].waiting for job in ("7_0", "7_1", "8", "9")] == [False, True, True, False]
    assert [states[job].ended for job in ("7_0", "7_1", "8", "9")] == [False, False, False, True]
    assert str(states["7_1"]) == "pending (Resources)"
    assert str(states["9"]) == "out of memory"


def test_a_job_that_left_the_queue_is_looked_up_in_the_accounts(commands: Path) -> None:
    put(commands, "squeue", SQUEUE)
    put(commands, "sacct", "echo '3_0|COMPLETED'; echo '3_1|CANCELLED by 1000'; echo '4|PREEMPTED'")
    states = job_states(["3_0", "3_1", "4", "7_0"])
    assert {job: state.name for job, state in states.items()} == {
        "3_0": "COMPLETED",
        "3_1": "CANCELLED",
        "4": "PREEMPTED",
        "7_0": "RUNNING",
    }
    assert not states["4"].ended  # it may have been requeued


def test_without_accounting_a_job_that_left_the_queue_is_unknown(commands: Path) -> None:
    put(commands, "squeue", SQUEUE)
    put(commands, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert job_states(["3_0"]) == {}


def test_a_controller_that_does_not_answer_is_an_error(commands: Path) -> None:
    put(commands, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SlurmError, match="Unable to contact slurm controller"):
        job_states(["7_0"])


def test_a_missing_command_is_an_error(commands: Path) -> None:
    with pytest.raises(SlurmError, match="nosuchcommand: no such command"):
        slurm_command(["nosuchcommand"])
