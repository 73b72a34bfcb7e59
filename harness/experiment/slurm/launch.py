"""Submit the cells of a plan as jobs, and follow the jobs to their records."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from harness.config import RunSettings
from harness.errors import UserError, one_line
from harness.experiment.messages import relay
from harness.experiment.plan import Cell
from harness.experiment.runner import Reporter
from harness.experiment.slurm.files import JobFiles, ProgressReader
from harness.experiment.slurm.job import CellJob, LatencyJob
from harness.experiment.slurm.queue import JobState, SlurmError, job_states
from harness.experiment.to_record import failed_record
from harness.records.record import Record
from harness.records.store import CellBusyError, Store

_WARNING = 120
"""Seconds before the end of its time that a job is told, so that it can save its cell."""


LATENCY = "latency"
"""Key of the latency job, where other jobs have a cell's id."""


POLL = 1.0
"""Seconds between two reads of the progress files."""


ASK_EVERY = 10.0


RECORD_WITHIN = 30.0
"""Seconds that a record may take to become visible after the end of its job (shared file systems cache)."""


SILENT_FOR = 900.0
"""Seconds without an answer from Slurm after which following the jobs ends. The jobs are not affected."""


@dataclass(frozen=True)
class Submitted:
    """Jobs of a run.

    jobs: job id by cell id, of the cells that are not finished, and of `LATENCY`.
    new: number of cells whose job was submitted just now.
    found: states of the cells' jobs that were in the queue or running already.
    """

    jobs: Mapping[str, str]
    new: int
    found: Sequence[JobState]


def submit(settings: RunSettings, cells: Sequence[Cell], store: Store) -> Submitted:
    """Submit a job for each cell that is neither finished nor in the queue nor running.

    cells: all of the run. A last job measures latencies after the others.

    Raises:
        UserError: submitit or Slurm is missing, or Slurm refuses the jobs.
    """
    files, to_run = JobFiles(store.root), [cell for cell in cells if not store.finished(cell.id)]
    with files.submitting():
        known = files.jobs()
        try:
            states = job_states(set(known.values()))
        except SlurmError as error:
            raise UserError(f"launcher: Slurm does not answer: {error}.") from None
        active = {name: job for name, job in known.items() if job in states and not states[job].ended}
        missing = [cell for cell in to_run if cell.id not in active]
        root = store.root.absolute()
        new: dict[str, str] = {}
        if missing:
            for cell in missing:
                files.progress(cell.id).unlink(missing_ok=True)
            ids = _submit(settings, files, [CellJob(settings, root, cell.id) for cell in missing])
            new = {cell.id: job for cell, job in zip(missing, ids, strict=True)}
            files.write_jobs(known | new)
        jobs = {cell.id: (active | new)[cell.id] for cell in to_run}
        if new or (LATENCY not in active and not jobs and _latency_missing(cells, store)):
            after = sorted({job.split("_")[0] for job in jobs.values()})
            (latency,) = _submit(settings, files, [LatencyJob(settings, root)], after)
            new[LATENCY] = latency
            files.write_jobs(known | new)
        if LATENCY in (active | new):
            jobs[LATENCY] = (active | new)[LATENCY]
    found = [states[job] for name, job in jobs.items() if name in active and name != LATENCY]
    return Submitted(jobs, sum(name != LATENCY for name in new), found)


def _latency_missing(cells: Sequence[Cell], store: Store) -> bool:
    records = [store.record(cell.id) for cell in cells if store.finished(cell.id)]
    return any(record.latency == () for record in records)


def _submit(
    settings: RunSettings, files: JobFiles, work: Sequence[Callable[[], None]], after: Sequence[str] = ()
) -> list[str]:
    """Submit callables as one array (one alone as a single job); returns their job ids.

    after: ids of jobs that must have ended, in whatever way, before these start.
    """
    try:
        import submitit
    except ImportError:
        raise UserError("launcher: slurm needs submitit; install petl-harness[slurm].") from None
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError("launcher: no Slurm on this machine: the commands sbatch and srun are missing.")
    executor = submitit.SlurmExecutor(files.logs)
    executor.update_parameters(**_parameters(settings, after))
    try:
        jobs = executor.submit_array(list(work))
    except Exception as error:  # submitit wraps what sbatch prints in an error of its own
        said = [line for line in str(error).splitlines() if "error:" in line]
        raise UserError(
            f"launcher: Slurm refuses the jobs: {said[-1] if said else one_line(error)}"
        ) from None
    return [str(job.job_id) for job in jobs]


def _parameters(settings: RunSettings, after: Sequence[str]) -> dict[str, Any]:
    chosen, device = settings.slurm, settings.device
    gpus = chosen.slurm_gpus
    if gpus is None:
        gpus = 0 if device.accelerator == "cpu" else device.devices
    optional = {
        "partition": chosen.slurm_partition,
        "constraint": chosen.slurm_constraint,
        "account": chosen.slurm_account,
        "mem": None if chosen.slurm_memory_gib is None else f"{chosen.slurm_memory_gib}GB",
        "gpus_per_node": gpus or None,
        "setup": None if chosen.slurm_setup is None else [chosen.slurm_setup],
        "dependency": f"afterany:{':'.join(after)}" if after else None,
    }
    return {
        "job_name": "harness",
        "time": chosen.slurm_minutes,
        "nodes": device.nodes,
        "ntasks_per_node": device.devices,
        "cpus_per_task": chosen.slurm_cpus,
        "array_parallelism": chosen.slurm_parallel,
        "signal_delay_s": min(_WARNING, chosen.slurm_minutes * 60 // 3),
        # A cell is the same wherever it runs, so that a lost node costs it only the steps since its checkpoint.
        "additional_parameters": {"requeue": True},
        **{name: value for name, value in optional.items() if value is not None},
    }


@dataclass
class _Followed:
    """A cell whose job has not ended as far as we know.

    note: how the cell ended, as its job reports it.
    missing_since: when Slurm first said that the job has ended, or no longer knew it (monotonic seconds).
    """

    cell: Cell
    job: str
    read: ProgressReader
    begun: bool = False
    state: JobState | None = None
    missing_since: float | None = None
    note: str | None = None
    error: str | None = None
    started: datetime = field(default_factory=lambda: datetime.now().astimezone())


class Follower:
    """Follows jobs until each cell has a record or has failed, and tells a reporter."""

    def __init__(
        self, store: Store, cells: Sequence[Cell], jobs: Mapping[str, str], reporter: Reporter
    ) -> None:
        self._store = store
        self._files = JobFiles(store.root)
        self._reporter = reporter
        self._open = [
            _Followed(cell, jobs[cell.id], ProgressReader(self._files.progress(cell.id)))
            for cell in cells
            if cell.id in jobs
        ]
        self._latency = jobs.get(LATENCY)
        self._asked = -ASK_EVERY
        self._answered = time.monotonic()

    def run(self) -> None:
        """Return when all jobs have ended.

        Raises:
            UserError: Slurm has not answered for a quarter of an hour.
        """
        while self._open or self._latency is not None:
            now = time.monotonic()
            if now - self._asked >= ASK_EVERY:
                self._ask(now)
            self._open = [followed for followed in self._open if not self._ended(followed, now)]
            if self._open or self._latency is not None:
                time.sleep(POLL)

    def _ask(self, now: float) -> None:
        self._asked = now
        jobs = [followed.job for followed in self._open]
        if self._latency is not None:
            jobs.append(self._latency)
        try:
            states = job_states(jobs)
        except SlurmError as error:
            if now - self._answered > SILENT_FOR:
                raise UserError(
                    f"launcher: Slurm has not answered for {SILENT_FOR / 60:g} minutes ({error}); the same command "
                    "follows the jobs again."
                ) from None
            return
        self._answered = now
        for followed in self._open:
            followed.state = states.get(followed.job)
            if followed.state is not None and not followed.state.ended:
                followed.missing_since = None  # also after it was requeued
            elif followed.missing_since is None:
                followed.missing_since = now
        if self._latency is not None:
            state = states.get(self._latency)
            if state is None or state.ended:
                self._latency = None

    def _ended(self, followed: _Followed, now: float) -> bool:
        """Pass on the reports of a cell's job; True if the cell has ended."""
        cell = followed.cell
        for kind, *content in followed.read():
            match kind:
                case "begin":
                    if not followed.begun:
                        followed.begun = True
                        self._reporter.begin(cell)
                case "mend":
                    followed.error = content[0]
                case "end":
                    followed.note = content[0]
                case _:
                    relay(kind, content, cell, self._reporter)
        if followed.note in ("finished", "kept") and self._store.finished(cell.id):
            self._reporter.end(cell, self._store.record(cell.id), "finished")
            return True
        if followed.note is not None and followed.note.startswith("left out"):
            self._reporter.end(cell, None, followed.note)
            return True
        if followed.missing_since is None or now - followed.missing_since < RECORD_WITHIN:
            return False
        self._conclude(followed)
        return True

    def _conclude(self, followed: _Followed) -> None:
        """The job has ended: read its record, or write one that says how the job ended."""
        cell, store = followed.cell, self._store
        try:
            with store.begin(cell.id):
                if store.finished(cell.id):
                    record, note = store.record(cell.id), "finished"
                elif followed.note == "failed":  # the job has written the reason
                    record, note = store.record(cell.id), "failed"
                else:
                    record, note = failed_record(cell, self._reason(followed), followed.started), "failed"
                    store.commit(record)
        except CellBusyError as error:
            self._reporter.end(cell, None, f"left out: {error}")
            return
        self._reporter.end(cell, record, note)

    def _reason(self, followed: _Followed) -> str:
        if followed.error is not None:
            return followed.error
        how = "is unknown to Slurm" if followed.state is None else f"ended: {followed.state}"
        return f"Slurm job {followed.job} {how}, without a result; its output is {self._files.output(followed.job)}"


def run_on_slurm(
    settings: RunSettings,
    cells: Sequence[Cell],
    store: Store,
    reporter: Reporter,
    note: Callable[[str], None],
) -> list[Record]:
    """Run cells as jobs of the cluster; returns the records of those that are finished at the end.

    The same call finds the jobs of an earlier one. With the setting `wait` it returns when all have ended,
    else as soon as they are submitted.

    Raises:
        UserError: Slurm is missing, refuses the jobs, or does not answer.
    """
    for cell in cells:
        if store.finished(cell.id):
            reporter.begin(cell)
            reporter.end(cell, store.record(cell.id), "kept")
    submitted = submit(settings, cells, store)
    note(_summary(submitted, store))
    if settings.slurm.wait:
        Follower(store, cells, submitted.jobs, reporter).run()
    return [store.record(cell.id) for cell in cells if store.finished(cell.id)]


def _summary(submitted: Submitted, store: Store) -> str:
    if not submitted.jobs:
        return "no job is left to run"
    parts = [f"{submitted.new} {'job' if submitted.new == 1 else 'jobs'} submitted"] if submitted.new else []
    parts += [f"{count} {state}" for state, count in Counter(map(str, submitted.found)).items()]
    if not parts:
        parts = ["latencies are being measured"]
    arrays = sorted({job.split("_")[0] for job in submitted.jobs.values()}, key=int)
    return f"{', '.join(parts)}; output in {JobFiles(store.root).logs}; to cancel: scancel {' '.join(arrays)}"
