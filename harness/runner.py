"""Runs the cells of a plan, keeps what is finished, and measures the finished models side by side."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import torch
from safetensors.torch import load_file, save

from harness.assemble import failed_record, finished_record
from harness.cell import Progress, deployed_model, make_fabric, run_cell
from harness.errors import UserError
from harness.fit import TaskModel
from harness.measure.latency import LatencySample, measure_latency
from harness.plan import Cell, Workplace, digest_json
from harness.record import Failure, Latency, Record, write_atomically
from harness.seeds import generator
from harness.store import WEIGHTS, CellBusyError, Store
from tasks.base import Batch

FULL = "full (untouched)"
"""Name of the backbone as loaded in a latency measurement: what full tuning deploys."""
TRACEBACK = "traceback.txt"
"""In a failed cell's folder."""
SINGLE, SMALL_BATCH = (1, 50, 1.0), (16, 10, 1.0)
"""Batch size, least iterations, least seconds of a latency measurement."""


class Reporter(Protocol):
    """Who is told what happens; several cells may be under way at once."""

    def begin(self, cell: Cell) -> None:
        """A cell begins."""

    def stage(self, cell: Cell, name: str, total: int) -> None:
        """A new stage of the cell, of `total` examples, begins."""

    def advance(self, cell: Cell, count: int) -> None:
        """`count` more examples of the cell's stage are done."""

    def epoch(self, cell: Cell, figures: Mapping[str, float]) -> None:
        """An epoch of the cell's training is over: its row of the learning curve."""

    def end(self, cell: Cell, record: Record | None, note: str) -> None:
        """A cell has ended (`note`: finished, kept, failed, busy)."""


@dataclass(frozen=True)
class _ProgressOf(Progress):
    """A cell's progress, told to the reporter of all cells."""

    cell: Cell
    reporter: Reporter

    def stage(self, name: str, total: int) -> None:
        """A new stage begins."""
        self.reporter.stage(self.cell, name, total)

    def advance(self, count: int) -> None:
        """Examples are done."""
        self.reporter.advance(self.cell, count)

    def epoch(self, figures: Mapping[str, float]) -> None:
        """An epoch is over."""
        self.reporter.epoch(self.cell, figures)


def run_cells(cells: Sequence[Cell], store: Store, reporter: Reporter) -> list[Record]:
    """Run what is not finished; a crash ends its cell, not the run.

    Returns the records of all cells that are there, in the order of `cells`.

    Raises:
        UserError: something the user has to mend; what was finished before is kept.
    """
    records: dict[str, Record] = {}
    for cell in cells:
        reporter.begin(cell)
        try:
            with store.begin(cell.id):
                if store.finished(cell.id):
                    record, note = store.record(cell.id), "kept"
                else:
                    record, note = _run(cell, store, reporter)
        except CellBusyError as error:
            reporter.end(cell, None, f"left out: {error}")
            continue
        records[cell.id] = record
        reporter.end(cell, record, note)
    return list(records.values())


def _run(cell: Cell, store: Store, reporter: Reporter) -> tuple[Record, str]:
    started = datetime.now().astimezone()
    try:
        outcome = run_cell(cell, store.checkpoint(cell.id), _ProgressOf(cell, reporter))
    except UserError:
        raise
    except Exception as error:
        record = failed_record(cell, _one_line(error), started)
        write_atomically(store.folder(cell.id) / TRACEBACK, traceback.format_exc().encode())
        store.commit(record)
        return record, "failed"
    weights = save({name: tensor.contiguous() for name, tensor in outcome.tuned.items()})
    record = finished_record(cell, outcome, started, len(weights))
    store.commit(
        record,
        predictions=outcome.predictions["test"],
        curve=outcome.curve,
        write_weights=lambda path: path.write_bytes(weights) and None,
        compress=True,
    )
    return record, "finished"


def measure_side_by_side(
    cells: Iterable[Cell],
    store: Store,
    on_stage: Callable[[str], None] = lambda text: None,
    again: bool = False,
) -> list[Record]:
    """Interleaved latency of one finished cell a method, and of the untouched backbone, for each workplace.

    Nothing is measured where the very same cells have been measured together already, unless `again`.
    """
    by_workplace: dict[int, list[Cell]] = {}
    for cell in cells:
        if store.finished(cell.id):
            by_workplace.setdefault(id(cell.workplace), []).append(cell)
    changed: list[Record] = []
    for found in by_workplace.values():
        contestants = list({cell.label: cell for cell in reversed(found)}.values())[::-1]
        if not contestants or (not again and _measured_together(contestants, store)):
            continue
        on_stage(f"latency of {len(contestants)} methods, interleaved")
        try:
            changed += _measure(contestants, store)
        except UserError:
            raise
        except Exception as error:
            failure = Failure(error=_one_line(error))
            on_stage(f"latency could not be measured: {failure.error}")
            for cell in contestants:
                changed.append(store.record(cell.id).model_copy(update={"latency": failure}))
                store.commit(changed[-1])
    return changed


def _one_line(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip().splitlines()[0]


def _measured_together(cells: Sequence[Cell], store: Store) -> bool:
    groups = []
    for cell in cells:
        latency = store.record(cell.id).latency
        groups.append({one.group for one in latency} if not isinstance(latency, Failure) else set())
    return bool(set.intersection(*groups)) if groups else False


def _measure(cells: Sequence[Cell], store: Store) -> list[Record]:
    workplace = cells[0].workplace
    fabric = make_fabric(workplace)
    models = {cell.id: _deployed(cell, store).to(fabric.device) for cell in cells}
    backbone = workplace.fresh_backbone()  # building a head may widen its token types
    head = workplace.task.build_head(backbone, generator(0, "latency"))
    untouched = TaskModel(workplace.task, backbone, head)
    models[FULL] = untouched.requires_grad_(False).eval().to(fabric.device)
    moment = datetime.now().astimezone().isoformat()
    group = digest_json([moment, sorted(models)])
    measured: dict[str, list[Latency]] = {name: [] for name in models}
    for batch_size, least, seconds in (SINGLE, SMALL_BATCH):
        samples = _latencies(workplace, models, batch_size, least, seconds)
        for name, sample in samples.items():
            measured[name].append(_latency(workplace, sample, batch_size, group))
    changed = []
    for cell in cells:
        record = store.record(cell.id).model_copy(
            update={"latency": tuple(measured[cell.id]), "full_latency": tuple(measured[FULL])}
        )
        store.commit(record)
        changed.append(record)
    return changed


def _deployed(cell: Cell, store: Store) -> TaskModel:
    """A cell's model to be timed. Time depends on no weight's value, so that records shared without weights do."""
    record = store.record(cell.id)
    weights = store.folder(cell.id) / WEIGHTS
    decision = None if record.search is None else record.search.decision
    return deployed_model(cell, load_file(weights) if weights.is_file() else None, decision)


def _latencies(
    workplace: Workplace, models: dict[str, TaskModel], batch_size: int, least: int, seconds: float
) -> dict[str, LatencySample]:
    device = next(next(iter(models.values())).parameters()).device
    size = workplace.measured_input
    inputs = workplace.pristine.example_inputs(
        batch_size, size.text_length, size.image_size, torch.Generator().manual_seed(0)
    ).to(device)
    count = getattr(workplace.task, "images_per_example", 1)
    batch = Batch((inputs,) * count, None, tuple(str(row) for row in range(batch_size)))
    fabric = make_fabric(workplace)

    def runner(model: TaskModel) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode(), fabric.autocast():
                return model(batch)

        return run

    runs = {name: runner(model) for name, model in models.items()}
    return measure_latency(runs, device, min_iterations=least, min_seconds=seconds)


def _latency(workplace: Workplace, sample: LatencySample, batch_size: int, group: str) -> Latency:
    size = workplace.measured_input
    return Latency(
        batch_size=batch_size,
        image_size=size.image_size,
        text_length=size.text_length,
        p50_ms=sample.p50,
        p90_ms=sample.p90,
        n=sample.n,
        threads=sample.threads,
        device=sample.device,
        samples_ms=tuple(round(value, 4) for value in sample.samples_ms),
        wall_ms=() if sample.wall_ms == sample.samples_ms else tuple(round(v, 4) for v in sample.wall_ms),
        group=group,
    )
