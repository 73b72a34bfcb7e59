"""Run a record's cell again with the settings it stores, and compare the figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.backbones.checkpoints import read_tensors
from harness.digests import digest_json
from harness.errors import UserError
from harness.experiment.plan import Cell
from harness.experiment.reload import cell_of
from harness.experiment.runner import Reporter, run_cells
from harness.records.environment import describe_environment
from harness.records.protocol import stated_protocol
from harness.records.record import Compute, Failure, Parameters, Record
from harness.records.record_file import RECORD, read_record
from harness.records.store import WEIGHTS, Store

NOT_THERE = "–"


@dataclass(frozen=True)
class Figure:
    """One figure of a record and of its repetition, as text with all digits."""

    name: str
    recorded: str
    again: str

    @property
    def same(self) -> bool:
        """True if they agree to the last digit."""
        return self.recorded == self.again


@dataclass(frozen=True)
class Comparison:
    """figures: must agree; times: shown, not compared."""

    figures: list[Figure]
    times: list[Figure]


def find_record(where: str, results: Path) -> tuple[Path, Record]:
    """Find a record by its path, its folder, or the first characters of the cell's id.

    Raises:
        UserError: there is none, or its cell has not finished.
    """
    path = Path(where)
    if path.name == RECORD or path.is_dir():
        folder = path.parent if path.name == RECORD else path
        record = read_record(folder / RECORD)
    else:
        store = Store(results)
        record = store.find(where)
        folder = store.folder(record.cell.id)
    if record.status != "finished":
        raise UserError(
            f"{folder}: this cell has failed ({record.error}), so there is nothing to compare with; "
            "`harness run` runs it again."
        )
    return folder, record


def open_cell(record: Record, data_root: Path | None, weights: str | None, tokenizer: str | None) -> Cell:
    """The record's cell with its backbone and data.

    Raises:
        UserError: the weights or the data differ from the record's, or the device is not available.
    """
    require_device(record)
    cell = cell_of(record, data_root, weights, tokenizer, record.environment.device or "auto")
    data = cell.testbed.data
    if record.data.digest != digest_json(data.provenance):
        details = _plain(data.provenance)
        changed = [key for key, value in record.data.details.items() if details.get(key) != value]
        raise UserError(
            f"{cell.testbed.data_root}: not the data that cell {record.cell.id} was trained on "
            f"({', '.join(changed) or 'their digest'} differ)."
        )
    return cell


def require_device(record: Record) -> None:
    """Raise `UserError` if the device that the cell was trained on is not available."""
    device = record.environment.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"cell {record.cell.id} was trained on {device}, which is not available here.")


def differences(record: Record, cell: Cell) -> Iterator[str]:
    """Differences from the record that may change figures, one line each: code, protocol, versions, hardware."""
    recorded = record.environment
    here = describe_environment()
    if not record.cell.code:
        yield "the record does not name the code that produced it"
    for part, digest in record.cell.code.items():
        if cell.code.get(part) != digest:
            commits = f"; commit then {recorded.commit}, now {here['commit']}"
            yield f"code of the {part} ({digest}, now {cell.code.get(part, 'part of the others')}{commits})"
    protocol = _plain(cell.testbed.protocol)
    then = stated_protocol(record)
    for key in sorted({*then, *protocol}):
        if then.get(key) != protocol.get(key):
            yield f"{key} ({then.get(key)}, now {protocol.get(key)})"
    yield from environment_differences(record)


def environment_differences(record: Record) -> Iterator[str]:
    """Versions and hardware that differ from the record, one line each."""
    recorded = record.environment
    here = describe_environment()
    for name, version in recorded.versions.items():
        if here["versions"].get(name) != version:
            yield f"version of {name} ({version}, now {here['versions'].get(name)})"
    if recorded.hardware.get("cpu") != here["hardware"]["cpu"]:
        yield f"processor ({recorded.hardware.get('cpu')}, now {here['hardware']['cpu']})"
    if recorded.hardware.get("gpus") != here["hardware"]["gpus"] and recorded.device not in (None, "cpu"):
        yield f"GPUs ({recorded.hardware.get('gpus')}, now {here['hardware']['gpus']})"


def run_again(record: Record, cell: Cell, folder: Path, results: Path, reporter: Reporter) -> Store:
    """Run the cell in another results folder, with the record's number of threads.

    The number of threads decides in which order products are summed. Returns the results folder.

    Raises:
        UserError: `results` is the record's own folder, or the cell failed.
    """
    store = Store(results)
    if store.folder(cell.id).resolve() == folder.resolve():
        raise UserError(f"{results}: contains the record itself; choose another folder.")
    threads = torch.get_num_threads()
    torch.set_num_threads(record.environment.threads)
    try:
        records = run_cells([cell], store, reporter)
    finally:
        torch.set_num_threads(threads)
    if not records or records[0].status != "finished":
        error = records[0].error if records else "another process is running it"
        raise UserError(f"cell {cell.id} could not be run again: {error}.")
    return store


def compare(folder: Path, record: Record, again: Store) -> Comparison:
    """Compare a record, its predictions and tuned weights with those of its repetition."""
    repeated = again.record(record.cell.id)
    recorded, found = figures_of(record), figures_of(repeated)
    figures = [
        Figure(name, recorded.get(name, NOT_THERE), found.get(name, NOT_THERE))
        for name in {**recorded, **found}
    ]
    figures += _predictions(folder, record, again)
    figures += _weights(folder, again.folder(record.cell.id))
    times = []
    for name, value in times_of(record).items():
        times.append(Figure(name, value, times_of(repeated).get(name, NOT_THERE)))
    return Comparison(figures, times)


def figures_of(record: Record) -> dict[str, str]:
    """Every figure of a record except times and memory, by name, with all digits."""
    found: dict[str, str] = {}
    for split, metrics in record.metrics.items():
        found |= {f"{split} {name}": repr(value) for name, value in metrics.items()}
    found["majority answer"] = repr(record.majority_accuracy)
    found |= _counts("parameters", record.parameters)
    found |= _counts("deployed parameters", record.deployed_parameters)
    found |= _macs("MACs", record.compute)
    found |= _macs("full tuning's MACs", record.full_compute)
    if record.routes is not None:
        found["blocks run, mean"] = repr(record.routes.blocks_run)
        found["different routes"] = repr(record.routes.different)
    found["tuned file, bytes"] = repr(record.tuned_file_bytes)
    found["images left out"] = repr(record.skipped_images)
    if record.training is not None:
        found["reported epoch"] = repr(record.training.best_epoch)
        found["optimiser steps"] = repr(record.training.steps)
        found["learning rate"] = repr(record.training.learning_rate)
    if record.search is not None:
        found |= record.search.figures
    return found


def times_of(record: Record) -> dict[str, str]:
    """Figures that depend on the machine and its load."""
    found = {}
    if record.training is not None:
        found["training, s"] = f"{record.training.seconds:.1f}"
        found["training, examples/s"] = f"{record.training.examples_per_second:.1f}"
    if record.search is not None:
        found["search, s"] = f"{record.search.seconds:.1f}"
    return found


def _counts(what: str, parameters: Parameters | None) -> dict[str, str]:
    if parameters is None:
        return {}
    groups = {f"{what}, {name.replace('_', ' ')}": n for name, n in vars(parameters.groups).items() if n}
    return {name: f"{count:,}" for name, count in {**groups, f"{what}, all": parameters.total}.items()}


def _macs(what: str, compute: Compute | Failure | None) -> dict[str, str]:
    if compute is None or isinstance(compute, Failure):
        return {what: NOT_THERE if compute is None else compute.error}
    counts = {f"{what}, {name}": count for name, count in compute.macs.items()}
    counts[f"{what}, all"] = compute.macs_total
    if compute.decoding is not None:
        counts[f"{what}, next token"] = compute.decoding.token_macs
    return {name: f"{count:,}" for name, count in counts.items()}


def _predictions(folder: Path, record: Record, again: Store) -> list[Figure]:
    # A results folder is <root>/cells/<id>; a cell's folder may also have been copied out of one.
    try:
        recorded = list(Store(folder.parent.parent).predictions(folder.name))
    except (UserError, ValueError):
        return []
    found = list(again.predictions(record.cell.id))
    here = {str(row["id"]): row for row in found}
    equal = sum(here.get(str(row["id"])) == row for row in recorded)
    return [
        Figure("predictions, identical", f"{len(recorded)} of {len(recorded)}", f"{equal} of {len(found)}")
    ]


def _weights(folder: Path, again: Path) -> list[Figure]:
    if not (folder / WEIGHTS).is_file():
        return []
    recorded, found = read_tensors(folder / WEIGHTS), read_tensors(again / WEIGHTS)
    equal = sum(name in found and torch.equal(tensor, found[name]) for name, tensor in recorded.items())
    total = f"{len(recorded)} of {len(recorded)}"
    return [Figure("tuned tensors, identical", total, f"{equal} of {len(found)}")]


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` as a record gives it back."""
    found: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return found
