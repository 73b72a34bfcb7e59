"""Evaluate a finished cell from what it stored."""

from __future__ import annotations

from pathlib import Path

from lightning_fabric import Fabric
from safetensors.torch import load_file

from harness.errors import UserError
from harness.experiment.build import deployed_model, loader
from harness.experiment.reload import cell_of
from harness.records.store import WEIGHTS, Store
from harness.training.encoder_cache import cached_encoding
from harness.training.fabric import make_fabric
from harness.training.loop import predict


def evaluate_cell(
    prefix: str,
    results: Path,
    split: str,
    data_root: Path | None,
    weights: str | None,
    tokenizer: str | None,
    submission: Path | None,
) -> dict[str, float]:
    """Predict a split with a cell's tuned weights; returns its metrics, empty without annotations."""
    store = Store(results)
    record = store.find(prefix)
    if record.status != "finished":
        raise UserError(f"cell {record.cell.id} has not finished: {record.error}")
    if split not in ("val", "test"):
        raise UserError(f"--split has to be val or test, got '{split}'.")
    cell = cell_of(record, data_root, weights, tokenizer)
    testbed = cell.testbed
    fabric: Fabric = make_fabric(testbed)
    decision = None if record.search is None else record.search.decision
    tuned = load_file(store.folder(record.cell.id) / WEIGHTS)
    model = fabric.setup_module(deployed_model(cell, tuned, decision))
    trained = {name.removeprefix("backbone.") for name in tuned}
    with cached_encoding(model.backbone, testbed.encodings, evaluation=True, tuned=trained):
        predictions = predict(fabric, model, testbed.task, loader(testbed, split))
    if submission is not None:
        testbed.task.write_submission(predictions, submission)
    if any(prediction.get("score") is None for prediction in predictions):
        return {}
    return testbed.task.score(predictions)
