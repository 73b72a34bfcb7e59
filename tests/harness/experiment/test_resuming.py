"""An interrupted cell resumes from its last saved step and ends as if nothing had happened, bit by bit on the CPU."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.config.sources import make_settings
from harness.experiment import cell as cell_module
from harness.experiment.cell import CHECKPOINT, Outcome, run_cell
from harness.experiment.plan import Cell, build_cells, open_testbeds
from harness.experiment.search_stage import FOUND, SEARCH_CHECKPOINT, SEARCHED
from harness.process import REQUESTS, StopRequestedError
from harness.training.checkpoint import load_checkpoint, tuned_state
from harness.training.model import TaskModel
from methods.das import DAS
from tasks.mini.vqa import Sizes, ensure_vqa

EPOCHS, BATCH = 3, 8
METHODS = "das[search_epochs=3,period=1],lora[dropout=0.1],roe[tune=full]"


class StoppedError(Exception):
    """Simulates the end of the process."""


class Counting:
    """Progress that stops the cell after a number of examples in a stage."""

    def __init__(self, stage: str = "", examples: int = 0) -> None:
        self.at = (stage, examples)
        self.seen: dict[str, int] = {}
        self.first: int | None = None
        self.current = ""
        self.notes: list[str] = []

    def stage(self, name: str, total: int) -> None:
        self.current = name
        self.seen[name] = 0

    def advance(self, count: int) -> None:
        self.seen[self.current] += count
        self.first = count if self.first is None else self.first
        if self.at[0] == self.current and self.seen[self.current] >= self.at[1]:
            raise StoppedError

    def epoch(self, figures: dict[str, float]) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cell]:
    root = ensure_vqa(tmp_path_factory.mktemp("data"), sizes=Sizes(60, 2, 6, 2, 6, 2))
    settings = make_settings(
        methods=METHODS,
        tasks="vqa",
        data_root=root,
        epochs=EPOCHS,
        batch_size=BATCH,
        accelerator="cpu",
    )
    return {cell.method().name: cell for cell in build_cells(settings, open_testbeds(settings))}


@pytest.fixture(scope="module")
def uninterrupted(cells: dict[str, Cell], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return {name: run_cell(cell, tmp_path_factory.mktemp(name), Counting()) for name, cell in cells.items()}


def interrupted(cell: Cell, scratch: Path, *moments: tuple[str, int]) -> tuple[Outcome, list[Counting]]:
    tries = [Counting(*moment) for moment in moments]
    for progress in tries:
        torch.manual_seed(99)  # a new process knows nothing of the old one's random state
        with pytest.raises(StoppedError):
            run_cell(cell, scratch, progress)
    last = Counting()
    return run_cell(cell, scratch, last), [*tries, last]


def _padded(examples: int) -> int:
    """Examples of an epoch as progress counts them, in whole batches."""
    return ceil(examples / BATCH) * BATCH


def decision(outcome: Outcome) -> Any:
    return None if outcome.search is None else replace(outcome.search, seconds=0.0)


def assert_same(found: Outcome, expected: Outcome) -> None:
    assert found.predictions == expected.predictions
    assert found.metrics == expected.metrics
    assert found.curve == expected.curve
    assert decision(found) == decision(expected)
    assert found.tuned.keys() == expected.tuned.keys()
    assert all(torch.equal(found.tuned[name], expected.tuned[name]) for name in expected.tuned)


@pytest.mark.parametrize("done", range(EPOCHS))
def test_training_resumes_at_its_last_epoch(
    cells: dict[str, Cell], uninterrupted: dict[str, Outcome], tmp_path: Path, done: int
) -> None:
    examples = len(cells["lora"].testbed.data.splits["train"])
    found, tries = interrupted(cells["lora"], tmp_path, ("train", done * _padded(examples) + BATCH))
    assert_same(found, uninterrupted["lora"])
    assert found.training["steps"] == EPOCHS * _padded(examples) // BATCH
    assert (tmp_path / CHECKPOINT).is_file()
    assert tries[-1].first == done * examples


def test_a_method_with_stages_resumes_in_its_stage(
    cells: dict[str, Cell], uninterrupted: dict[str, Outcome], tmp_path: Path
) -> None:
    examples = len(cells["roe"].testbed.data.splits["train"])
    found, _ = interrupted(cells["roe"], tmp_path, ("train", _padded(examples) + BATCH))
    assert_same(found, uninterrupted["roe"])
    assert found.routes == uninterrupted["roe"].routes


def test_search_interrupted_in_every_epoch_equals_the_uninterrupted_one(
    cells: dict[str, Cell], uninterrupted: dict[str, Outcome], tmp_path: Path
) -> None:
    search = uninterrupted["das"].search
    assert search is not None
    # What is done of a resumed search is told at once, in examples; then come batches.
    moments = [("search", search.training_examples * epoch + BATCH) for epoch in range(3)]
    found, tries = interrupted(cells["das"], tmp_path, *moments, ("train", 2 * BATCH))
    assert_same(found, uninterrupted["das"])
    assert found.search is not None
    assert len(found.search.history) > 4
    assert "search" not in tries[-1].seen  # its decision is kept, not found again
    assert (tmp_path / FOUND).is_file()
    assert not (tmp_path / SEARCH_CHECKPOINT).exists()


def test_resumed_search_does_not_repeat_finished_epochs(
    cells: dict[str, Cell], uninterrupted: dict[str, Outcome], tmp_path: Path
) -> None:
    search = uninterrupted["das"].search
    assert search is not None
    with pytest.raises(StoppedError):
        run_cell(cells["das"], tmp_path, Counting("search", 2 * _padded(search.training_examples) + 1))
    assert load_checkpoint(tmp_path / SEARCH_CHECKPOINT)["training"]["epoch"] == 2
    second = Counting("search", 1)
    with pytest.raises(StoppedError):
        run_cell(cells["das"], tmp_path, second)
    assert second.first == 2 * search.training_examples


@pytest.mark.parametrize("interrupt", [False, True])
def test_training_starts_with_the_weights_of_the_search(
    cells: dict[str, Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: bool
) -> None:
    begun: list[dict[str, Tensor]] = []

    def train(cell: Cell, method: DAS, model: TaskModel, *others: Any) -> Any:
        begun.append(tuned_state(model))
        raise StoppedError

    monkeypatch.setattr(cell_module, "_train", train)
    for _ in range(1 + interrupt):
        with pytest.raises(StoppedError):
            run_cell(cells["das"], tmp_path, Counting())
    searched = load_checkpoint(tmp_path / SEARCHED)
    skipped = {
        name.split(".")[1] for name in json.loads((tmp_path / FOUND).read_text())["decision"]["skipped"]
    }
    assert begun[-1].keys() == begun[0].keys()
    for name, tensor in begun[-1].items():
        layer, _, rest = name.partition(".layer.")[2].partition(".")
        part = "shortcut" if layer in skipped else "block"
        source = name.replace(f".{layer}.{rest}", f".{layer}.{part}.{rest}") if layer else name
        assert torch.equal(tensor, searched[source]), name


@pytest.fixture(scope="module")
def saved_often(cells: dict[str, Cell]) -> dict[str, Cell]:
    """The same cells, saved after every step."""
    some = cells["das"].testbed
    device = some.settings.device.model_copy(update={"checkpoint_minutes": 0.0})
    often = replace(some, settings=some.settings.model_copy(update={"device": device}))
    return {name: replace(cell, testbed=often) for name, cell in cells.items()}


@pytest.mark.parametrize(("name", "seed"), [("lora", 0), ("lora", 1), ("das", 2)])
def test_a_cell_killed_at_random_steps_ends_as_the_uninterrupted_one(
    saved_often: dict[str, Cell], uninterrupted: dict[str, Outcome], tmp_path: Path, name: str, seed: int
) -> None:
    draw = random.Random(seed)
    cell = saved_often[name]
    examples = len(cell.testbed.data.splits["train"])
    search = uninterrupted["das"].search
    assert search is not None
    totals = {"train": EPOCHS * examples, "predict val": 12, "predict test": 12}
    if name == "das":
        totals = {"search": EPOCHS * search.training_examples, **totals}
    moments = [
        (stage, moment)
        for stage, total in totals.items()
        for moment in sorted(draw.sample(range(1, total), 2 if stage in ("search", "train") else 1))
    ]
    for junk in ("junk", "done.json", "scores-test.npz", f".{CHECKPOINT}.1.partial", "core"):
        (tmp_path / junk).write_bytes(draw.randbytes(50))
    (tmp_path / "folder").mkdir()
    found, _ = interrupted(cell, tmp_path, *moments)
    assert_same(found, uninterrupted[name])
    assert found.training["steps"] == uninterrupted[name].training["steps"]


@pytest.mark.parametrize(("name", "stage"), [("lora", "train"), ("das", "search")])
def test_steps_after_the_last_saved_one_are_done_again(
    cells: dict[str, Cell], uninterrupted: dict[str, Outcome], tmp_path: Path, name: str, stage: str
) -> None:
    class SavedBefore(Counting):
        def advance(self, count: int) -> None:
            super_at, self.at = self.at, ("", 0)
            super().advance(count)
            self.at = super_at
            if self.current == stage and self.seen[stage] == 2 * BATCH:
                REQUESTS.save = True  # as SIGUSR1 does
            if self.current == stage and self.seen[stage] == 3 * BATCH:
                raise StoppedError

    with pytest.raises(StoppedError):
        run_cell(cells[name], tmp_path, SavedBefore())
    assert not REQUESTS.save
    torch.manual_seed(99)
    last = Counting()
    assert_same(run_cell(cells[name], tmp_path, last), uninterrupted[name])
    assert last.first == 2 * BATCH


def test_a_request_to_stop_saves_the_step_and_ends_the_cell(
    cells: dict[str, Cell], uninterrupted: dict[str, Outcome], tmp_path: Path
) -> None:
    class AskedToStop(Counting):
        def advance(self, count: int) -> None:
            super().advance(count)
            REQUESTS.stop = self.seen[self.current] == 3 * BATCH

    with pytest.raises(StopRequestedError):
        run_cell(cells["lora"], tmp_path, AskedToStop())
    REQUESTS.stop = False
    last = Counting()
    assert_same(run_cell(cells["lora"], tmp_path, last), uninterrupted["lora"])
    assert last.first == 3 * BATCH


@pytest.mark.parametrize("file", [CHECKPOINT, SEARCH_CHECKPOINT, SEARCHED, FOUND])
def test_a_damaged_file_is_set_aside_and_its_stage_runs_again(
    cells: dict[str, Cell], uninterrupted: dict[str, Outcome], tmp_path: Path, file: str
) -> None:
    during = ("search", 30) if file == SEARCH_CHECKPOINT else ("train", 40)
    with pytest.raises(StoppedError):
        run_cell(cells["das"], tmp_path, Counting(*during))
    if file == SEARCH_CHECKPOINT and not (tmp_path / file).exists():
        (tmp_path / file).write_bytes(b"")
    content = bytearray((tmp_path / file).read_bytes() if (tmp_path / file).exists() else b"none")
    content[len(content) // 2 :] = b"?" * 10
    (tmp_path / file).write_bytes(content)
    progress = Counting()
    assert_same(run_cell(cells["das"], tmp_path, progress), uninterrupted["das"])
    assert (tmp_path / f"{file}.damaged").read_bytes() == content
    (note,) = progress.notes
    assert note.startswith(f"{tmp_path / file}: damaged (")
    assert note.endswith(f"kept as {file}.damaged, its stage starts again")
    assert ("search" in progress.seen) == (file != CHECKPOINT)


def test_a_checkpoint_of_another_model_is_set_aside(cells: dict[str, Cell], tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run_cell(cells["das"], tmp_path, Counting("train", 80))
    for file in (FOUND, SEARCHED):
        (tmp_path / file).unlink()
    progress = Counting("train", 8)
    with pytest.raises(StoppedError):
        run_cell(cells["lora"], tmp_path, progress)
    (note,) = progress.notes
    assert "names differ" in note
