"""Following jobs to their records: what Slurm says of a job, and what its cell has written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.config import RunSettings
from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment.plan import Cell, build_cells, open_testbeds
from harness.experiment.runner import run_cells
from harness.experiment.slurm import launch
from harness.experiment.slurm.files import JobFiles, ProgressWriter
from harness.experiment.slurm.job import CellJob
from harness.experiment.slurm.launch import Follower
from harness.experiment.slurm.queue import JobState, SlurmError
from harness.records.store import Store
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.support.reporters import Notes


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    root = ensure_vqa(tmp_path_factory.mktemp("data"), sizes=Sizes(40, 2, 6, 2, 6, 2))
    return make_settings(methods="classifier", tasks="vqa", data_root=root, epochs=1, accelerator="cpu")


@pytest.fixture(scope="module")
def cell(settings: RunSettings) -> Cell:
    return build_cells(settings, open_testbeds(settings))[0]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "POLL", 0.0)
    monkeypatch.setattr(launch, "ASK_EVERY", 0.0)
    monkeypatch.setattr(launch, "RECORD_WITHIN", 0.0)


def answers(monkeypatch: pytest.MonkeyPatch, *rounds: Mapping[str, JobState] | SlurmError) -> None:
    """What Slurm answers, one after the other; the last answer stays."""
    left = list(rounds)

    def job_states(jobs: object) -> Mapping[str, JobState]:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, SlurmError):
            raise answer
        return answer

    monkeypatch.setattr(launch, "job_states", job_states)


def test_a_finished_record_ends_a_cell_whatever_slurm_says(
    settings: RunSettings, cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CellJob(settings, tmp_path, cell.id)()
    answers(monkeypatch, SlurmError("no controller"))
    notes = Notes()
    Follower(Store(tmp_path), [cell], {cell.id: "1_0"}, notes).run()
    assert notes.ended == [("classifier", "finished")]
    assert ("classifier", "train") in notes.stages
    assert len(notes.epochs) == 1


def test_a_job_has_the_result_of_a_run_on_this_machine(
    settings: RunSettings, cell: Cell, tmp_path: Path
) -> None:
    CellJob(settings, tmp_path / "job", cell.id)()
    run_cells([cell], Store(tmp_path / "here"), Notes())
    ours, theirs = Store(tmp_path / "here"), Store(tmp_path / "job")
    assert list(ours.predictions(cell.id)) == list(theirs.predictions(cell.id))


def test_a_job_that_was_cancelled_fails_its_cell_and_names_its_output(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, {"1_0": JobState("RUNNING")}, {"1_0": JobState("CANCELLED")})
    notes = Notes()
    Follower(Store(tmp_path), [cell], {cell.id: "1_0"}, notes).run()
    assert notes.ended == [("classifier", "failed")]
    error = Store(tmp_path).record(cell.id).error or ""
    assert "Slurm job 1_0 ended: cancelled" in error
    assert str(JobFiles(tmp_path).output("1_0")) in error


def test_a_job_that_slurm_has_forgotten_fails_its_cell(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, {})
    Follower(Store(tmp_path), [cell], {cell.id: "1_0"}, Notes()).run()
    assert "unknown to Slurm" in (Store(tmp_path).record(cell.id).error or "")


def test_a_requeued_job_has_not_ended(
    settings: RunSettings, cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "RECORD_WITHIN", 1e9)  # the state of a moment ends nothing
    rounds = [JobState("PREEMPTED"), JobState("PENDING", "BeginTime"), JobState("RUNNING")]
    answers(monkeypatch, {"1_0": JobState("TIMEOUT")}, *({"1_0": state} for state in rounds))
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 5:
            CellJob(settings, tmp_path, cell.id)()

    monkeypatch.setattr(launch.time, "sleep", sleep)
    notes = Notes()
    Follower(Store(tmp_path), [cell], {cell.id: "1_0"}, notes).run()
    assert notes.ended == [("classifier", "finished")]


def test_what_the_user_must_change_is_the_reason_of_the_failure(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ProgressWriter(JobFiles(tmp_path).progress(cell.id))(("mend", "/data: no such folder."))
    answers(monkeypatch, {"1_0": JobState("FAILED")})
    Follower(Store(tmp_path), [cell], {cell.id: "1_0"}, Notes()).run()
    assert Store(tmp_path).record(cell.id).error == "/data: no such folder."


def test_a_job_of_other_data_or_code_says_so(settings: RunSettings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="changed while the job was in the queue"):
        CellJob(settings, tmp_path, "0" * 16)()
    assert "changed while" in JobFiles(tmp_path).progress("0" * 16).read_text()


def test_a_controller_that_stays_silent_ends_the_wait_but_not_the_jobs(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, SlurmError("Unable to contact slurm controller"))
    monkeypatch.setattr(launch, "SILENT_FOR", -1.0)
    with pytest.raises(UserError, match=r"has not answered.*the same command follows the jobs again"):
        Follower(Store(tmp_path), [cell], {cell.id: "1_0"}, Notes()).run()
    assert not Store(tmp_path).folder(cell.id).exists()
