"""Find and adopt stale cells: cells with the current configuration that were finished with other code.

A change of code that does not change results should not make a leaderboard invalid, and this must be verified. So a
sample of the stale cells is run again. If every figure and every prediction agrees, all of them move to the ids that
the current code gives them, and each record names the sample.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

from harness.digests import digest_json
from harness.errors import UserError
from harness.experiment.plan import Cell, build_cell, cell_id
from harness.experiment.reproduce import Figure, compare, run_again
from harness.experiment.runner import Reporter
from harness.experiment.to_record import planned_parts
from harness.files import disk_errors
from harness.records.environment import describe_environment
from harness.records.record import Adoption, CellChoice, DataProvenance, Record
from harness.records.record_file import RECORD, write_record
from harness.records.search_history import write_history
from harness.records.store import CHECKPOINT, LOCK, CellBusyError, Store
from tasks.base import Data

OWN_PARTS = ("method", "task", "backbone")
"""Parts of a cell's code that are not shared by all cells of a run."""

REMOVED = "removed"
"""Suffix of a folder that is being removed; its name begins with a dot, so that it is not taken for a cell."""


@dataclass(frozen=True)
class Stale:
    """A finished cell of other code: its record, and what the current code would put in its place."""

    record: Record
    cell: CellChoice
    protocol: Mapping[str, Any]
    data: DataProvenance


@dataclass(frozen=True)
class Found:
    """Cells of a results folder that were finished with other code.

    stale: cells that can be adopted.
    left_alone: ids of cells that cannot, by reason.
    leftovers: ids of cells that an interrupted adoption has moved and not yet removed.
    """

    stale: list[Stale]
    left_alone: dict[str, list[str]]
    leftovers: list[str]


def find_stale(records: Sequence[Record], open_cell: Callable[[Record], Cell]) -> Found:
    """The stale cells of a results folder.

    open_cell: returns a record's cell with backbone and data loaded.
    """
    stale: dict[str, Stale] = {}
    left_alone: dict[str, list[str]] = {}
    leftovers = _leftovers(records)
    taken = {record.cell.id for record in records}
    finished = [each for each in records if each.status == "finished" and each.cell.id not in leftovers]

    def leave(record: Record, reason: str) -> None:
        left_alone.setdefault(reason, []).append(record.cell.id)

    # Loading takes most of the time and is the same for all seeds.
    for _, group in groupby(finished, _all_but_seed):
        cell: Cell | None = None
        for record in group:
            try:
                cell = (
                    open_cell(record)
                    if cell is None
                    else build_cell(cell.testbed, cell.method_spec, record.cell.seed)
                )
            except UserError as error:
                leave(record, str(error))
                continue
            today = cell_id(cell.configuration, cell.code)
            if today == record.cell.id:
                continue
            if differing := configuration_differences(record, cell):
                leave(record, f"other configuration ({', '.join(differing)})")
                continue
            if today in taken:
                leave(record, "the same cell has been run with today's code")
                continue
            earlier = stale.get(today)
            if earlier is not None:
                older, record = sorted([earlier.record, record], key=lambda each: each.timestamps.finished)
                leave(older, "there is a newer result of the same cell")
            parts = planned_parts(cell)
            chosen = parts["cell"].model_copy(update={"id": today})
            stale[today] = Stale(record, chosen, parts["protocol"], parts["data"])
    return Found(list(stale.values()), left_alone, leftovers)


def stale_among(cells: Iterable[Cell], records: Sequence[Record]) -> set[str]:
    """Ids of the `cells` that other code has finished with the same configuration."""
    finished = [record for record in records if record.status == "finished"]
    return {
        cell.id
        for cell in cells
        if any(
            record.cell.id != cell.id and not configuration_differences(record, cell)
            for record in _alike(finished, cell)
        )
    }


def _alike(records: Iterable[Record], cell: Cell) -> Iterator[Record]:
    for record in records:
        chosen = record.cell
        same = (chosen.task.name, chosen.seed) == (cell.testbed.task.name, cell.seed)
        if same and chosen.method.name == cell.method_spec.name:
            yield record


def configuration_differences(record: Record, cell: Cell) -> list[str]:
    """Settings of a record that differ from a cell of the current code; empty if the record is stale or up to date.

    A setting that is missing in the record has been added since and is no difference: the sample shows whether its
    default is the earlier behaviour.
    """
    if record.cell.configuration == cell.configuration:
        return []
    parts = planned_parts(cell)
    rate = None if record.training is None else record.training.learning_rate
    recorded = _settings(record.cell, record.protocol, rate, record.skipped_images > 0)
    today = _settings(
        parts["cell"], parts["protocol"], cell.learning_rate, cell.testbed.settings.data.skip_bad_images
    )
    differing = [name for name, value in recorded.items() if name not in today or today[name] != value]
    data = cell.testbed.data
    if record.data.digest != parts["data"].digest and (
        record.cell.configuration is not None
        or record.data.digest != data_digest_before_image_bytes_counted(data)
    ):
        differing.append("data")
    return differing


def _settings(
    chosen: CellChoice, protocol: Mapping[str, Any], rate: float | None, skips_images: bool
) -> dict[str, Any]:
    """A cell's configuration without its data, by name, as read from JSON."""
    return {
        "method": chosen.method.name,
        "task": chosen.task.name,
        "backbone": chosen.backbone.name,
        "weights": chosen.backbone.digest,
        "seed": chosen.seed,
        "learning_rate": rate,
        "skip_bad_images": skips_images,
        **{f"{chosen.method.name}'s {name}": value for name, value in chosen.method.options.items()},
        **{f"{chosen.task.name}'s {name}": value for name, value in chosen.task.options.items()},
        **{name: value for name, value in protocol.items() if name not in ("data", "task_options")},
    }


def data_digest_before_image_bytes_counted(data: Data) -> str:
    """The digest of the data as in records that are older than the key `cell.configuration`.

    Those records digested images by name and size only. This is used only to recognise their data.
    """
    splits = {}
    for split, origin in data.provenance.get("splits", {}).items():
        splits[split] = dict(origin)
        if "image digest" in origin and split in data.splits:
            images = {path for example in data.splits[split] for path in example.images}
            sizes = [(path.name, path.stat().st_size if path.is_file() else None) for path in images]
            listing = sorted(sizes, key=lambda entry: (entry[0], entry[1] or 0))
            splits[split]["image digest"] = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    return digest_json({**data.provenance, "splits": splits})


def _all_but_seed(record: Record) -> str:
    chosen = record.cell.model_copy(update={"id": "", "seed": 0, "code": {}, "configuration": None})
    rate = None if record.training is None else record.training.learning_rate
    told = (rate, record.skipped_images > 0, record.environment.device, record.data.digest)
    return digest_json([chosen.model_dump(), record.protocol, *told])


def draw(stale: Sequence[Stale], size: int, seed: int) -> list[Stale]:
    """A random sample of `size` cells: as many methods as possible, and each version of the shared code at least once.

    It is larger than `size` only if the cells were made by more versions of the code.
    """
    random = Random(seed)
    strata: dict[tuple[str, str], list[Stale]] = {}
    for each in sorted(stale, key=lambda each: each.record.cell.id):
        code = {part: digest for part, digest in each.record.cell.code.items() if part not in OWN_PARTS}
        strata.setdefault((digest_json(code), each.cell.method.label), []).append(each)
    order = sorted(strata)
    random.shuffle(order)
    for stratum in order:
        random.shuffle(strata[stratum])
    # One stratum of every version of the code, then a second of each, and so on.
    earlier: Counter[str] = Counter()
    rank = {}
    for state, label in order:
        rank[state, label] = earlier[state]
        earlier[state] += 1
    order.sort(key=lambda stratum: rank[stratum])
    drawn: list[Stale] = []
    while len(drawn) < min(len(stale), max(size, len(earlier))):
        stratum = order.pop(0)
        drawn.append(strata[stratum].pop())
        if strata[stratum]:
            order.append(stratum)
    return drawn


def differing_figures(
    stale: Stale, cell: Cell, store: Store, scratch: Path, reporter: Reporter
) -> list[Figure]:
    """Run a stale cell again in the results folder `scratch`; returns the figures that differ.

    Raises:
        UserError: it cannot run again, or it has no predictions to compare with.
    """
    record = stale.record
    next(store.predictions(record.cell.id))  # Raises before anything is run.
    folder = store.folder(record.cell.id)
    again = run_again(record, cell, folder, scratch, reporter)
    return [figure for figure in compare(folder, record, again).figures if not figure.same]


def adopt(store: Store, stale: Sequence[Stale], sampled: Sequence[Stale], seed: int) -> list[str]:
    """Move stale cells to the ids of the current code; returns the ids of cells that another run has started meanwhile.

    This may be interrupted at any moment and called again: a cell's new folder is complete before the old one is
    removed.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    here = describe_environment()
    busy = []
    for each in stale:
        adoption = Adoption(
            date=datetime.now().astimezone(),
            from_id=each.record.cell.id,
            from_code=each.record.cell.code,
            to_code=each.cell.code,
            sampled=tuple(one.cell.id for one in sampled),
            stale=len(stale),
            seed=seed,
            commit=here["commit"],
            dirty=here["dirty"],
        )
        record = each.record.model_copy(
            update={
                "cell": each.cell,
                "protocol": dict(each.protocol),
                "data": each.data,
                "adoptions": (*each.record.adoptions, adoption),
            }
        )
        try:
            with store.begin(each.cell.id) as folder:
                if (folder / RECORD).is_file():
                    busy.append(each.record.cell.id)
                    continue
                with disk_errors(folder):
                    _take_files(store.folder(each.record.cell.id), folder)
                # A record of schema 1, which is about to be removed, contains its history.
                if (history := store.search_history(each.record.cell.id)) is not None:
                    write_history(folder, history)
                write_record(folder, record)
                shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)  # of an interrupted run
        except CellBusyError:
            busy.append(each.record.cell.id)
            continue
        _discard(store.folder(each.record.cell.id))
    return busy


def clear_leftovers(store: Store, leftovers: Iterable[str]) -> None:
    """Remove folders that an interrupted adoption has already moved."""
    for cell in leftovers:
        _discard(store.folder(cell))
    for folder in store.cells.glob(f".*.{REMOVED}"):
        shutil.rmtree(folder)


def _leftovers(records: Sequence[Record]) -> list[str]:
    """Ids of cells whose record was also adopted in another folder: same id before, same time of finishing."""
    adopted = {(each.adoptions[-1].from_id, each.timestamps.finished) for each in records if each.adoptions}
    return [each.cell.id for each in records if (each.cell.id, each.timestamps.finished) in adopted]


def _take_files(old: Path, new: Path) -> None:
    """Link all files of a cell except its record, which is written last."""
    not_taken = shutil.ignore_patterns(RECORD, LOCK, CHECKPOINT, ".*.partial")
    shutil.copytree(old, new, ignore=not_taken, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    """Hard-link a file, or copy it if the file system has no hard links."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _discard(folder: Path) -> None:
    """Remove a cell's folder atomically."""
    removed = folder.with_name(f".{folder.name}.{REMOVED}")
    folder.rename(removed)
    shutil.rmtree(removed)
