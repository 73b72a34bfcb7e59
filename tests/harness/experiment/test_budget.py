"""`budget=total`: what a search trains is part of the epochs, so that every method sees equally many examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.config import RunSettings
from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment import cell as cell_module
from harness.experiment.cell import Outcome, run_cell, steps_of
from harness.experiment.plan import Cell, build_cells, open_testbeds
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.support.reporters import Notes

BATCH = 8
EXAMPLES = 60
METHODS = "lora,das[search_epochs=2,period=4]"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    root = ensure_vqa(tmp_path_factory.mktemp("data"), sizes=Sizes(EXAMPLES, 2, 6, 2, 6, 2))
    return make_settings(
        methods=METHODS,
        tasks="vqa",
        data_root=root,
        epochs=4,
        budget="total",
        batch_size=BATCH,
        accelerator="cpu",
    )


@pytest.fixture(scope="module")
def cells(settings: RunSettings) -> list[Cell]:
    return build_cells(settings, open_testbeds(settings))


class Counting(Notes):
    """Examples by stage."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.seen: dict[str, int] = {}

    def stage(self, name: str, total: int) -> None:
        self.current = name
        self.totals[name], self.seen[name] = total, 0

    def advance(self, count: int) -> None:
        self.seen[self.current] += count

    def epoch(self, figures: dict[str, float]) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def run(cell: Cell, scratch: Path) -> tuple[Outcome, Counting]:
    progress: Any = Counting()
    return run_cell(cell, scratch, progress), progress


@pytest.mark.parametrize(
    ("seen", "expected"),
    [(0, 0), (3, 0), (5, 1), (20, 2), (21, 3), (22, 3), (42, 6), (50, 7)],
)
def test_steps_are_the_nearest_to_the_examples_seen(seen: int, expected: int) -> None:
    """Epochs of 21 examples in batches of 8, 8 and 5."""
    assert steps_of(seen, 21, 8, 3) == expected


def test_every_method_sees_the_same_number_of_examples(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora, das = cells
    examples = len(lora.testbed.data.splits["train"])
    schedules: list[int] = []
    build = cell_module.build_schedule
    monkeypatch.setattr(
        cell_module, "build_schedule", lambda *args: schedules.append(args[1]) or build(*args)
    )
    outcome, _ = run(lora, tmp_path / "lora")
    assert outcome.training["epochs"] == 4
    searching, progress = run(das, tmp_path / "das")
    assert searching.search is not None
    searched = searching.search.trained
    assert searched == 2 * searching.search.training_examples
    assert searching.training["epochs"] + searched / examples == pytest.approx(4, abs=BATCH / 2 / examples)
    assert [figures["epoch"] for figures in searching.curve][-1] == 4
    steps = -(-examples // BATCH)
    assert schedules == [4 * steps, searching.training["steps"]]
    assert searching.training["steps"] == 4 * steps - steps_of(searched, examples, BATCH, steps)
    assert abs(progress.seen["train"] - progress.totals["train"]) <= BATCH * 4


def test_mean_loss_of_an_epoch_begun_in_the_middle_is_over_its_own_steps(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a loss of 1 at every step, the mean is 1 in each epoch."""
    das = cells[1]

    def train(fabric: Any, state: Any, task: Any, batches: Any, **rest: Any) -> float:
        batches.set_epoch(state.epoch, state.step)
        trained = sum(1 for _ in batches)
        state.cost.steps += trained
        return trained / len(batches)

    monkeypatch.setattr(cell_module, "train_epoch", train)
    outcome, _ = run(das, tmp_path)
    assert outcome.search is not None
    assert outcome.search.trained % len(das.testbed.data.splits["train"])
    assert [figures["train_loss"] for figures in outcome.curve] == pytest.approx([1.0] * len(outcome.curve))


def test_search_that_leaves_nothing_is_refused_before_anything_runs(settings: RunSettings) -> None:
    training = settings.training.model_copy(update={"epochs": 1})
    short = settings.model_copy(update={"training": training})
    with pytest.raises(UserError, match=r"das: its search takes 1\.6 epochs of a total budget of 1"):
        build_cells(short, open_testbeds(short))


def test_budget_is_part_of_the_protocol(cells: list[Cell]) -> None:
    assert cells[0].testbed.protocol["budget"] == "total"
