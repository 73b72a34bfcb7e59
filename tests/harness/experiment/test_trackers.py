"""Trackers receive every epoch and the final figures, and their failures fail no cell."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from harness.errors import UserError
from harness.experiment import trackers
from harness.experiment.trackers import TrackingReporter, check_trackers, final_figures
from tests.support.reporters import Notes
from tests.support.stored_results import make_record

CELL: Any = SimpleNamespace(
    id="0123456789abcdef",
    label="lora[r=8]",
    seed=1,
    learning_rate=1e-3,
    testbed=SimpleNamespace(
        task=SimpleNamespace(name="vqa"),
        embedded=True,
        backbone_name="vilt-mini",
        training=SimpleNamespace(epochs=2, batch_size=16),
    ),
)
EPOCHS = [
    {"epoch": 1, "train_loss": 2.0, "val_accuracy": 30.0},
    {"epoch": 2, "train_loss": 1.5, "val_accuracy": 40.0},
]


class Calls(list[tuple[str, Any]]):
    """The calls of a fake module, in order."""

    def take(self, name: str, result: Any = None) -> Any:
        def called(*arguments: Any, **named: Any) -> Any:
            self.append((name, (*arguments, named)))
            return result

        return called

    def of(self, name: str) -> list[Any]:
        return [arguments for known, arguments in self if known == name]


def play(names: list[str], folder: Path, record: Any) -> tuple[Notes, list[str]]:
    inner, notes = Notes(), list[str]()
    reporter = TrackingReporter(inner, names, folder, notes.append)
    reporter.begin(CELL)
    for figures in EPOCHS:
        reporter.epoch(CELL, figures)
    reporter.end(CELL, record, record.status)
    return inner, notes


def test_csv_holds_the_curve_and_the_final_figures(tmp_path: Path) -> None:
    record = make_record()
    inner, notes = play(["csv"], tmp_path, record)
    assert notes == []
    assert [figures for _, figures in inner.epochs] == EPOCHS
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["train_loss"], row["val_accuracy"]) for row in rows[:2]] == [
        ("1", "2.0", "30.0"),
        ("2", "1.5", "40.0"),
    ]
    assert len(rows) == 3
    for name, value in final_figures(record).items():
        assert float(rows[2][name]) == value
    assert f"test/{record.cell.task.primary_metric}" in rows[2]


def test_second_attempt_does_not_overwrite_the_first(tmp_path: Path) -> None:
    play(["csv"], tmp_path, make_record())
    play(["csv"], tmp_path, make_record())
    assert len(list(tmp_path.rglob("metrics.csv"))) == 2


def test_wandb_runs_offline_and_receives_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    run = SimpleNamespace(
        id="r1",
        log=calls.take("log"),
        finish=calls.take("finish"),
        config=SimpleNamespace(update=calls.take("config")),
    )
    fake = ModuleType("wandb")
    fake.init = calls.take("init", run)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    play(["wandb"], tmp_path, make_record(status="failed", error="out of memory", metrics={}))
    ((named,),) = calls.of("init")
    assert (named["mode"], named["dir"], named["reinit"]) == ("offline", str(tmp_path), "create_new")
    assert [arguments[1]["step"] for arguments in calls.of("log")] == [1, 2]
    assert calls.of("config")[0][0]["method"] == "lora[r=8]"
    assert calls.of("finish") == [({"exit_code": 1},)]


def test_mlflow_writes_to_a_folder_and_gets_valid_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls()
    client = SimpleNamespace(
        get_experiment_by_name=calls.take("experiment"),
        create_experiment=calls.take("create", "7"),
        create_run=calls.take("run", SimpleNamespace(info=SimpleNamespace(run_id="r1"))),
        log_metric=calls.take("metric"),
        log_param=calls.take("param"),
        set_terminated=calls.take("end"),
    )
    fake, tracking = ModuleType("mlflow"), ModuleType("mlflow.tracking")
    tracking.MlflowClient = calls.take("client", client)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", tracking)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record = make_record()
    metrics = {**record.metrics, "val": {"R@1": 12.5}}
    play(["mlflow"], tmp_path, record.model_copy(update={"metrics": metrics}))
    assert calls.of("client") == [({"tracking_uri": (tmp_path / "mlruns").resolve().as_uri()},)]
    assert ("r1", "train_loss", 2.0, {"step": 1}) in calls.of("metric")
    assert any(arguments[1] == "val/R at 1" for arguments in calls.of("metric"))
    assert calls.of("end") == [("r1", "FINISHED", {})]


def test_failing_tracker_is_disabled_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path, name: str) -> Any:
        raise ConnectionError("no such server")

    monkeypatch.setattr(trackers, "MAKERS", {**trackers.MAKERS, "mlflow": broken})
    inner, notes = play(["mlflow", "csv"], tmp_path, make_record())
    assert notes == ["logger mlflow failed and is no longer used: no such server"]
    assert inner.ended == [("lora[r=8]", "finished")]
    assert list(tmp_path.rglob("metrics.csv"))


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers(["csv"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed; pip install 'petl-harness\[wandb\]'"):
        check_trackers(["csv", "wandb"])
