"""The states of jobs from Slurm, with or without accounting."""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass

_ANSWER_WITHIN = 60.0
"""Seconds that a Slurm command may take; a busy controller answers slowly."""


_ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "REVOKED",
        "TIMEOUT",
    }
)
"""States that a job does not leave by itself. PREEMPTED is not among them: the job may have been requeued."""


_WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})


class SlurmError(Exception):
    """A Slurm command failed or is missing; the message is its last line."""


@dataclass(frozen=True)
class JobState:
    """State of a job as Slurm names it (`PENDING`, `OUT_OF_MEMORY`), and the reason if it waits."""

    name: str
    reason: str = ""

    @property
    def ended(self) -> bool:
        """True if the job will not run any further."""
        return self.name in _ENDED

    @property
    def waiting(self) -> bool:
        """True if the job is in the queue."""
        return self.name in _WAITING

    def __str__(self) -> str:
        reason = "" if self.reason in ("", "None") else f" ({self.reason})"
        return f"{self.name.lower().replace('_', ' ')}{reason}"


def job_states(jobs: Collection[str]) -> dict[str, JobState]:
    """State by job id (`12`, or `12_3` in an array); jobs that Slurm no longer knows are left out.

    `squeue` knows a job until some minutes after its end (`MinJobAge`). `sacct` knows it for longer, but fails
    where the cluster keeps no accounting.

    Raises:
        SlurmError: the controller does not answer.
    """
    # All own jobs, because squeue fails altogether if one id in a list is unknown.
    listed = slurm_command(
        ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%F|%K|%T|%r"]
    )
    found: dict[str, JobState] = {}
    for line in listed.splitlines():
        job, index, state, reason = line.strip().split("|", 3)
        found[job if index == "N/A" else f"{job}_{index}"] = JobState(state, reason)
    states = {job: found[job] for job in jobs if job in found}
    unknown = [job for job in jobs if job not in states]
    return states | _accounted(unknown)


def _accounted(jobs: Sequence[str]) -> dict[str, JobState]:
    if not jobs:
        return {}
    fields = ["--noheader", "--allocations", "--parsable2", "--format=JobID,State"]
    try:
        listed = slurm_command(["sacct", *fields, f"--jobs={','.join(jobs)}"])
    except SlurmError:
        return {}
    rows = (line.split("|") for line in listed.splitlines())
    # `CANCELLED by 1000`: the word is the state.
    found = {row[0]: JobState(row[1].split()[0]) for row in rows if len(row) == 2 and row[1]}
    return {job: found[job] for job in jobs if job in found}


def slurm_command(command: Sequence[str]) -> str:
    """Run a command of Slurm and return its standard output.

    Raises:
        SlurmError: it is missing, fails, or takes longer than a minute.
    """
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_ANSWER_WITHIN, check=False
        )
    except FileNotFoundError:
        raise SlurmError(f"{command[0]}: no such command") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]}: no answer within {_ANSWER_WITHIN:g} s") from None
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or [f"{command[0]}: status {result.returncode}"]
        raise SlurmError(lines[-1])
    return result.stdout
