"""Evaluate a finished cell's stored weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from harness.config.sources import flag_of
from harness.errors import UserError
from harness.experiment.build import loader
from harness.experiment.reload import cell_of, deployed, tuned_weights
from harness.files import require_writable
from harness.records.store import Store
from harness.registry import resolve_task
from harness.training.encoder_cache import cached_encoding
from harness.training.fabric import make_fabric
from harness.training.loop import predict
from methods.base import Method


def evaluate_cell(
    prefix: str,
    results: Path,
    split: str,
    data_root: Path | None,
    weights: str | None,
    tokenizer: str | None,
    submission: Path | None,
    method: Method[Any] | None = None,
    where: Callable[[str], str] = flag_of,
) -> dict[str, float]:
    """Predict a split with a cell's tuned weights; returns its metrics, empty without annotations.

    split: val or test, as the cell was trained with them, or one of the task's official splits, such as test-dev2015.
    method: the cell's method as an object, if it is not registered under a name.
    where: how an error names an argument; by default as an option of the command line.

    Raises:
        UserError: the cell has not finished, or cannot be loaded (see `cell_of`).
    """
    if submission is not None:
        require_writable(submission)
    store = Store(results)
    record = store.find(prefix)
    tuned = tuned_weights(store, record)
    task = resolve_task(record.cell.task.name)
    names = ("val", "test", *task.official_splits)
    if split not in names:
        raise UserError(f"{where('split')}: must be one of {', '.join(names)}; not {split!r}.")
    cell = cell_of(record, data_root, weights, tokenizer, method=method, where=where)
    testbed = cell.testbed
    examples = testbed.data.splits.get(split) or testbed.task.read_official(testbed.data_root, split)
    fabric: Fabric = make_fabric(testbed.settings)
    model = fabric.setup_module(deployed(cell, store, record, tuned))
    trained = {name.removeprefix("backbone.") for name in tuned}
    with cached_encoding(model.backbone, testbed.encodings, evaluation=True, tuned=trained):
        predictions = predict(fabric, model, testbed.task, loader(testbed, split, examples=examples))
    if submission is not None:
        testbed.task.write_submission(predictions, submission)
    if any(prediction.get("score") is None for prediction in predictions):
        return {}
    return testbed.task.score(predictions)
