"""The main job on a few questions, from the plan to the table, run twice."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import UserError
from harness.records.store import Store

TASK = "vqa[limit_train=96,limit_val=32,limit_test=32]"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(results: Path, methods: str, *more: str, tasks: str = TASK) -> str:
    arguments = [
        "run",
        "--methods",
        methods,
        "--tasks",
        tasks,
        "--epochs",
        "1",
        "--results",
        str(results),
        *more,
    ]
    outcome = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


@pytest.mark.timeout(1800)  # the whole of it, on a machine that may be busy
def test_methods_are_searched_trained_measured_and_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(cache))
    output = run(tmp_path / "a", "das,lora")
    assert "vqa (mini) on vilt-mini" in output
    store = Store(tmp_path / "a")
    das, lora = (next(r for r in store.records() if r.cell.method.name == name) for name in ("das", "lora"))
    assert das.search is not None
    assert len(das.search.decision["skipped"]) == 2  # type: ignore[arg-type]
    assert das.compute is not None
    assert das.compute.macs_total < das.full_compute.macs_total  # type: ignore[union-attr]
    assert lora.compute.macs_total == lora.full_compute.macs_total  # type: ignore[union-attr]
    assert {one.group for one in das.latency} == {one.group for one in lora.latency}  # type: ignore[union-attr]
    assert (tmp_path / "a" / "tables" / "latest.tex").is_file()

    again = run(tmp_path / "a", "das,lora")
    assert "0 of 2 cells to run" in again
    assert store.record(das.cell.id) == das

    run(tmp_path / "b", "das,lora", "--in-process")
    for record in (das, lora):
        elsewhere = list(Store(tmp_path / "b").predictions(record.cell.id))
        assert elsewhere == list(store.predictions(record.cell.id))

    shown = CliRunner().invoke(app, ["evaluate", das.cell.id[:8], "--results", str(tmp_path / "a")])
    assert f"accuracy\t{das.primary:.4f}" in shown.output, shown.output


def test_a_task_run_twice_with_other_options_gets_a_table_each(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(cache))
    blanked = TASK.replace("]", ",blank=image]")
    output = run(tmp_path, "classifier", "--in-process", tasks=f"{TASK},{blanked}")
    titles = (tmp_path / "tables" / "latest.md").read_text(encoding="utf-8").count("### vqa (mini)")
    assert (output.count("vqa (mini) on vilt-mini"), titles) == (2, 2)


def test_version_is_printed() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"petl-harness {version('petl-harness')}\n"


def test_wrong_name_gives_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'lora'"):
        CliRunner().invoke(app, ["run", "--methods", "lorra", "--tasks", "vqa"], catch_exceptions=False)
    with pytest.raises(UserError, match="no such folder"):
        run(tmp_path, "lora", "--data-root", json.dumps("nowhere"))
