"""Send learning curves and final metrics to experiment trackers, through Fabric's logger interface.

`csv` and `tensorboard` are Fabric's own loggers. `mlflow` and `wandb` write to folders beside the results and need
no network unless MLFLOW_TRACKING_URI or WANDB_MODE is set.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.loggers import CSVLogger, TensorBoardLogger
from lightning_fabric.loggers.logger import Logger

from harness.errors import UserError
from harness.experiment.plan import Cell
from harness.experiment.runner import Reporter
from harness.records.record import Compute, Memory, Record

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "csv": (),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "mlflow": ("mlflow",),
    "wandb": ("wandb",),
}
"""Packages by tracker, any one of which it needs. The extra that installs it has the tracker's name."""


PROJECT = "petl-harness"
"""Name of the MLflow experiment and of the Weights & Biases project."""


_ODD = re.compile(r"[^\w.+-]+")


def check_trackers(names: Sequence[str]) -> None:
    """Check that all named trackers are installed.

    Raises:
        UserError: one is not installed.
    """
    for name in names:
        packages = PACKAGES[name]
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            raise UserError(
                f"logger: {name}: the package is not installed; pip install 'petl-harness[{name}]'."
            )


class MLflowLogger(Logger):
    """A run in an MLflow experiment. It uses the client, so that several runs may be open at once."""

    def __init__(self, folder: Path, name: str) -> None:
        client = importlib.import_module("mlflow.tracking").MlflowClient
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").resolve().as_uri()
        self._client = client(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name(PROJECT)
        number = self._client.create_experiment(PROJECT) if experiment is None else experiment.experiment_id
        self._name = name
        self._run: str = self._client.create_run(number, run_name=name).info.run_id

    @property
    def name(self) -> str:
        """The run's name."""
        return self._name

    @property
    def version(self) -> str:
        """The run's id."""
        return self._run

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log metrics of a step; "@" in names becomes "at", as MLflow forbids it."""
        for key, value in metrics.items():
            self._client.log_metric(self._run, key.replace("@", " at "), value, step=step or 0)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log the cell's settings."""
        for key, value in dict(params if isinstance(params, dict) else vars(params)).items():
            self._client.log_param(self._run, key, value)

    def finalize(self, status: str) -> None:
        """Close the run."""
        self._client.set_terminated(self._run, "FINISHED" if status == "success" else "FAILED")


class WandbLogger(Logger):
    """A Weights & Biases run, offline unless WANDB_MODE is set (`wandb sync` uploads it later)."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._name = name
        self._run = importlib.import_module("wandb").init(
            project=PROJECT,
            name=name,
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",  # several cells run at once
        )

    @property
    def name(self) -> str:
        """The run's name."""
        return self._name

    @property
    def version(self) -> str:
        """The run's id."""
        return str(self._run.id)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log metrics of a step."""
        self._run.log(dict(metrics), step=step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log the cell's settings."""
        self._run.config.update(dict(params if isinstance(params, dict) else vars(params)))

    def finalize(self, status: str) -> None:
        """Close the run."""
        self._run.finish(exit_code=0 if status == "success" else 1)


def _csv(folder: Path, name: str) -> Logger:
    return CSVLogger(folder / "csv", name=name, flush_logs_every_n_steps=1)


def _tensorboard(folder: Path, name: str) -> Logger:
    return TensorBoardLogger(folder / "tensorboard", name=name, default_hp_metric=False)


MAKERS: Mapping[str, Callable[[Path, str], Logger]] = {
    "csv": _csv,
    "tensorboard": _tensorboard,
    "mlflow": MLflowLogger,
    "wandb": WandbLogger,
}


class TrackingReporter:
    """Forwards everything to `inner` and sends epochs and final metrics to the trackers.

    Each attempt at a cell is one run in a tracker; a resumed attempt logs the earlier epochs again. A tracker that
    fails is reported through `note` and not used again, so that it cannot make the cell fail.
    """

    def __init__(
        self, inner: Reporter, names: Sequence[str], folder: Path, note: Callable[[str], None]
    ) -> None:
        self._inner = inner
        self._names = list(dict.fromkeys(names))
        self._folder = folder
        self._note = note
        self._open: dict[str, dict[str, Logger]] = {}

    def begin(self, cell: Cell) -> None:
        """A cell begins; its tracker runs are opened with the first metric."""
        self._inner.begin(cell)

    def stage(self, cell: Cell, name: str, total: int) -> None:
        """A stage begins."""
        self._inner.stage(cell, name, total)

    def advance(self, cell: Cell, count: int) -> None:
        """Examples are done."""
        self._inner.advance(cell, count)

    def epoch(self, cell: Cell, figures: Mapping[str, float]) -> None:
        """Log training loss and validation metric at the epoch's number."""
        self._inner.epoch(cell, figures)
        told = {key: float(value) for key, value in figures.items() if key != "epoch"}
        self._tell(cell, lambda logger: logger.log_metrics(told, step=int(figures["epoch"])))

    def end(self, cell: Cell, record: Record | None, note: str) -> None:
        """Log the final metrics, unless the cell was kept from an earlier run."""
        self._inner.end(cell, record, note)
        if record is None or note == "kept":
            return
        if record.status == "finished":
            figures, step = final_figures(record), cell.testbed.training.epochs
            self._tell(cell, lambda logger: logger.log_metrics(figures, step=step))
        status = "success" if record.status == "finished" else "failed"
        self._tell(cell, lambda logger: logger.finalize(status))
        self._open.pop(cell.id, None)

    def note(self, text: str) -> None:
        """One line for the user."""
        self._inner.note(text)

    def _tell(self, cell: Cell, what: Callable[[Logger], None]) -> None:
        for name in list(self._names):
            try:
                what(self._logger(cell, name))
            except Exception as error:
                self._note(f"logger {name} failed and is no longer used: {error}")
                self._names.remove(name)

    def _logger(self, cell: Cell, name: str) -> Logger:
        loggers = self._open.setdefault(cell.id, {})
        if name not in loggers:
            title = f"{cell.label} {cell.testbed.task.name} seed {cell.seed} {cell.id[:8]}"
            loggers[name] = MAKERS[name](self._folder, _ODD.sub("_", title))
            if name != "csv":  # Fabric's CSV logger stores no settings; they are in the record
                loggers[name].log_hyperparams(settings_of(cell))
        return loggers[name]


def settings_of(cell: Cell) -> dict[str, Any]:
    """Settings that identify a cell."""
    testbed = cell.testbed
    return {
        "cell": cell.id,
        "method": cell.label,
        "task": testbed.task.name,
        "data": "mini" if testbed.embedded else testbed.data_root.name,
        "backbone": testbed.backbone_name,
        "seed": cell.seed,
        "learning_rate": cell.learning_rate,
        "epochs": testbed.training.epochs,
        "batch_size": testbed.training.batch_size,
    }


def final_figures(record: Record) -> dict[str, float]:
    """Metrics and costs of a finished cell, with units in their names. Latency is missing: it is measured later."""
    found = {f"{split}/{key}": v for split, metrics in record.metrics.items() for key, v in metrics.items()}
    if record.parameters is not None:
        found["updated_parameters"] = float(record.parameters.updated)
    if isinstance(record.compute, Compute):
        found["macs"] = float(record.compute.macs_total)
    if isinstance(record.memory, Memory) and record.memory.peak_training_mib is not None:
        found["peak_training_mib"] = record.memory.peak_training_mib
    if record.tuned_file_bytes is not None:
        found["tuned_file_mib"] = record.tuned_file_bytes / 2**20
    if record.training is not None:
        found["training_seconds"] = record.training.seconds
        found["train_examples_per_second"] = record.training.examples_per_second
        found["best_epoch"] = float(record.training.best_epoch)
    if record.search is not None:
        found["search_seconds"] = record.search.seconds
    return found
