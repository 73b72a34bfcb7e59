"""Short and long form of the survival test, and what else a run has to come through."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli import call
from harness.config.sources import make_settings
from harness.experiment.plan import build_cells, open_testbeds
from harness.experiment.reproduce import figures_of
from harness.experiment.runner import run_cells
from harness.process import TERMINATED
from harness.records.store import Store
from harness.training.checkpoint import load_checkpoint
from tests.support.killing import ROOT, begun, command, is_time, make_data, survive
from tests.support.reporters import Notes

SHORT = "classifier,das[search_epochs=2,warmup_epochs=1,period=1]"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts processes in /proc")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process of a run has one, wherever the tests run: threads that wait for each other are slow."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.timeout(1800)
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    found = survive(tmp_path, kills=1, seed=1, seeds=1, epochs=1, methods=SHORT, jobs=1)
    assert found.kills == 1
    assert found.runs > 1


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_run_survives_fifty_kills(tmp_path: Path) -> None:
    assert survive(tmp_path, kills=50, seed=0, seeds=2, epochs=3).kills == 50


@pytest.mark.timeout(1800)
def test_ctrl_c_prints_the_table_and_the_same_command_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    arguments = command(
        make_data(tmp_path / "data"), results, seeds=1, epochs=2, methods="classifier,lora", jobs=1
    )
    # Where the tests run in the background, Ctrl-C is ignored, and a process started here would ignore it too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    while process.poll() is None and not list(results.glob("cells/*/record.json")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to every process of the run
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 130, output + errors
    assert "the same command resumes where this one stopped" in errors
    assert "Traceback" not in errors
    assert (results / "tables" / "latest.md").is_file()
    kept = {path: path.read_bytes() for path in results.glob("cells/*/record.json")}
    assert begun(results)
    capsys.readouterr()
    assert call([*arguments[3:], "--dry-run"]) == 0
    assert f"{2 - len(kept)} of 2 cells to run" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.timeout(600)
def test_signals_save_a_cell_and_the_same_command_continues(tmp_path: Path) -> None:
    """SIGUSR1 saves and training continues; SIGTERM saves and ends with a status and a line that say so."""
    data, results, truth = make_data(tmp_path / "data"), tmp_path / "results", tmp_path / "truth"
    chosen = ["--methods", "lora", "--tasks", "vqa", "--data-root", str(data), "--batch-size", "2"]
    arguments = [sys.executable, "-m", "harness", "run", *chosen, "--epochs", "3", "--accelerator", "cpu"]

    def wait_for(process: subprocess.Popen[str], found: Callable[[], object]) -> None:
        while process.poll() is None and not found():
            time.sleep(0.01)

    process = subprocess.Popen(
        [*arguments, "--results", str(results)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_for(process, lambda: list(results.glob("cells/*/checkpoint")))
    (checkpoint,) = results.glob("cells/*/checkpoint")
    state = checkpoint / "state.pt"
    while process.poll() is None and not state.is_file():
        process.send_signal(signal.SIGUSR1)  # sent while the worker still loads, it has no effect
        time.sleep(0.2)
    first = load_checkpoint(state)["training"]
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == TERMINATED == 143, output + errors
    assert errors.splitlines()[-1].startswith("harness: stopped by SIGTERM: interrupted, will resume")
    assert "Traceback" not in errors
    assert not list(results.glob("cells/*/record.json"))
    second = load_checkpoint(state)["training"]
    assert 0 < first["cost"]["steps"] < second["cost"]["steps"]
    chosen_here = {"methods": "lora", "tasks": "vqa", "data_root": data, "batch_size": 2, "epochs": 3}
    settings = make_settings(**chosen_here, accelerator="cpu")
    (cell,) = build_cells(settings, open_testbeds(settings))
    (found,), (expected,) = (run_cells([cell], Store(folder), Notes()) for folder in (results, truth))
    assert found.training is not None
    assert found.training.steps > second["cost"]["steps"]
    assert figures_of(found) == figures_of(expected)
    assert list(Store(results).predictions(found.cell.id)) == list(Store(truth).predictions(found.cell.id))


def test_columns_that_are_left_out_are_times() -> None:
    assert is_time("latency_p50_ms")
    assert not any(map(is_time, ("vqa", "macs", "updated_parameters", "method", "seeds", "tuned_file_mib")))


@pytest.mark.timeout(600)
def test_a_disk_that_fills_up_ends_the_run_with_one_line_and_no_record(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: both fail in the middle of a write."""
    results = tmp_path / "results"
    arguments = command(
        make_data(tmp_path / "data"), results, seeds=1, epochs=1, methods="classifier", jobs=1
    )
    limited = (
        "import os, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); os.execv(sys.argv[1], sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "harness: " in done.stderr
    assert "cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(results.glob("cells/*/record.json"))
    assert not list(results.rglob("*.partial"))
