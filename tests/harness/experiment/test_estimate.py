"""Estimates of a cell's time count its passes through the backbone."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment import estimate
from harness.experiment.estimate import Estimate, Estimator, Speed, duration, timed_speed
from harness.experiment.plan import Cell, build_cells, open_testbeds
from harness.experiment.to_record import failed_record
from harness.records.record import Record, TrainingCost
from tasks.mini.retrieval import Sizes, ensure_retrieval
from tasks.mini.vqa import Sizes as VQASizes
from tasks.mini.vqa import ensure_vqa


def cell_of(task: str, root: Path, method: str = "full", **more: Any) -> Cell:
    settings = make_settings(
        methods=method,
        tasks=task,
        data_root=root,
        epochs=2,
        accelerator="cpu",
        **{"backbone": "vilt-mini", **more},
    )
    (cell,) = build_cells(settings, open_testbeds(settings))
    return cell


SPEED = Speed(training=3.0, forward=0.5, encoding=0.25)


def estimated(cell: Cell, records: list[Record] | None = None) -> Estimate:
    return Estimator(records or [], 1, lambda cell: SPEED)(cell)


def test_retrieval_is_evaluated_on_all_pairs(tmp_path: Path) -> None:
    cell = cell_of("retrieval", ensure_retrieval(tmp_path, sizes=Sizes(10, 2, 3)))
    # 5 captions an image: 50 to train on, 2 × 10 pairs of validation, 3 × 15 of test. Two epochs.
    expected = Estimate(0.0, 50 * 0.25, 50 * 2 * 3.0, 2 * 20 * 0.5, (20 + 45) * 0.5, epochs=2)
    assert estimated(cell) == expected


def test_a_search_takes_its_epochs_too(tmp_path: Path) -> None:
    root = ensure_vqa(tmp_path, sizes=VQASizes(20, 2, 4, 2, 5, 2))
    plain, searching = estimated(cell_of("vqa", root)), estimated(cell_of("vqa", root, "das"))
    train = len(cell_of("vqa", root).testbed.data.splits["train"])
    assert (plain.search, searching.search) == (0.0, 3 * train * 3.0)
    assert (searching.training, searching.evaluation) == (plain.training, plain.evaluation)
    assert searching.total == plain.total + searching.search


def test_devices_share_the_work(tmp_path: Path) -> None:
    root = ensure_vqa(tmp_path, sizes=VQASizes(20, 2, 4, 2, 5, 2))
    alone, together = (estimated(cell_of("vqa", root, devices=devices)) for devices in (1, 4))
    assert together.total == pytest.approx(alone.total / 4)


def test_each_method_is_timed_once_and_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ensure_vqa(tmp_path, sizes=VQASizes(20, 2, 4, 2, 5, 2))
    settings = make_settings(methods="full,lora,bitfit", tasks="vqa", data_root=root, seeds=[0, 1])
    cells = build_cells(settings, open_testbeds(settings))
    timed: list[str] = []

    def time_it(cell: Cell) -> Speed:
        timed.append(cell.label)
        return SPEED

    estimator = Estimator([], 1, time_it)
    assert len({estimator(cell) for cell in cells}) == 1
    assert timed == ["full", "lora", "bitfit"]
    monkeypatch.setattr(estimate, "BUDGET_SECONDS", 0.0)
    timed.clear()
    estimator = Estimator([], 1, time_it)
    assert len({estimator(cell) for cell in cells}) == 1
    assert timed == ["full"]  # one of the task


def test_a_method_that_is_not_timed_is_estimated_by_the_nearest_on_another_task(tmp_path: Path) -> None:
    roots = {
        "vqa": ensure_vqa(tmp_path / "vqa", sizes=VQASizes(20, 2, 4, 2, 5, 2)),
        "retrieval": ensure_retrieval(tmp_path / "retrieval", sizes=Sizes(10, 2, 3)),
    }
    settings = make_settings(methods="full,lora,bitfit", tasks="vqa,retrieval", data_root=roots)
    cells = build_cells(settings, open_testbeds(settings))
    speeds = {"full": 10.0, "lora": 3.0, "bitfit": 2.0}

    def time_it(cell: Cell) -> Speed:
        if cell.testbed.task.name == "vqa":
            return Speed(speeds[cell.label], 1.0)
        if cell.label == "bitfit":
            raise RuntimeError("cannot be timed")
        return Speed({"full": 1.0, "lora": 60.0}[cell.label], 5.0)

    estimator = Estimator([], 1, time_it)
    found = {(cell.testbed.task.name, cell.label): estimator(cell) for cell in cells}
    # On VQA it takes 2/3 of what LoRA takes, and full tuning five times as long.
    assert found["retrieval", "bitfit"].training == pytest.approx(found["retrieval", "lora"].training * 2 / 3)
    assert found["retrieval", "bitfit"].evaluation == found["retrieval", "lora"].evaluation


def test_encodings_are_computed_by_the_first_cell_that_needs_them(tmp_path: Path) -> None:
    root = ensure_vqa(tmp_path, sizes=VQASizes(20, 2, 4, 2, 5, 2))
    speeds = {"full": Speed(training=9.0, forward=0.5), "lora": SPEED}
    for disk, encoded in ((8, [False, True, False, False]), (0, [False, True, False, True])):
        settings = make_settings(
            methods="full,lora",
            seeds=[0, 1],
            tasks="vqa",
            backbone="meter-mini",
            data_root=root,
            cache_disk_gib=disk,
        )
        cells = build_cells(settings, open_testbeds(settings))
        estimator = Estimator([], 1, lambda cell: speeds[cell.label])
        assert [estimator(cell).encoding > 0 for cell in cells] == encoded


def test_a_disturbance_of_one_step_does_not_change_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    durations = iter([0.5, 1.25, 0.25, 40.0])

    def step() -> None:
        nonlocal now
        now += next(durations)

    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now)
    assert estimate._seconds(step, torch.device("cpu")) == 0.5
    assert now == 2.0  # three steps, as they take long
    assert estimate._seconds(step, torch.device("cpu")) == 40.0  # one, as it takes very long


def test_encoding_is_part_of_the_first_epoch() -> None:
    trained = Estimate(encoding=8, training=40, validation=4, evaluation=10, epochs=4)
    assert trained.total == 62
    assert [trained.done("train", share) for share in (0, 0.125, 0.25, 0.5, 1)] == [0, 9, 18, 29, 51]
    assert trained.done("predict val", 0) == 52
    searched = Estimate(search=20, encoding=8, training=40, evaluation=10)
    assert [searched.done("search", share) for share in (0.5, 1)] == [14, 28]
    assert searched.done("train", 0.5) == 48


def test_what_the_user_must_mend_ends_the_plan_and_other_failures_do_not(tmp_path: Path) -> None:
    cell = cell_of("vqa", ensure_vqa(tmp_path, sizes=VQASizes(20, 2, 4, 2, 5, 2)))

    def fail(error: Exception) -> Callable[[Cell], Speed]:
        def timed(cell: Cell) -> Speed:
            raise error

        return timed

    with pytest.raises(UserError, match="negatives"):
        Estimator([], 1, fail(UserError("negatives=99999: too many")))(cell)
    assert math.isnan(Estimator([], 1, fail(RuntimeError("operator unknown")))(cell).total)


@pytest.mark.parametrize("method", ["lora", "das"])
@pytest.mark.parametrize("backbone", ["vilt-mini", "meter-mini"])
def test_real_steps_are_timed(tmp_path: Path, method: str, backbone: str) -> None:
    root = ensure_vqa(tmp_path, sizes=VQASizes(20, 2, 4, 2, 5, 2))
    speed = timed_speed(cell_of("vqa", root, method, backbone=backbone))
    # Times themselves are the machine's business: on a busy one even a difference may come out as 0.
    assert min(speed.forward, speed.training) > 0
    assert speed.encoding >= 0
    if backbone == "vilt-mini":  # nothing is encoded apart from the blocks
        assert speed.encoding == 0


def test_of_a_large_model_on_a_cpu_only_passes_of_one_text_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "LARGE", 0)
    monkeypatch.setattr(estimate.MicroBatches, "backward", lambda *_: pytest.fail("a step is run"))
    root = ensure_retrieval(tmp_path, sizes=Sizes(20, 5, 5))
    speed = timed_speed(cell_of("retrieval", root))
    assert speed.training == pytest.approx(estimate.PASSES * 16 * speed.forward)  # 1 caption and 15 negatives


@pytest.mark.parametrize(
    ("seconds", "text"), [(45, "45 s"), (1200, "20 min"), (12600, "3.5 h"), (math.nan, "unknown")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_record_of_this_machine_gives_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cell_of("vqa", ensure_vqa(tmp_path, sizes=VQASizes(20, 2, 4, 2, 5, 2)))
    failed = failed_record(cell, "none", datetime.now().astimezone())
    cost = TrainingCost(
        examples_per_second=4.0,
        seconds=1.0,
        epochs=2,
        best_epoch=1,
        steps=4,
        data_wait_fraction=0.0,
        learning_rate=1e-3,
    )
    record = failed.model_copy(update={"training": cost})
    assert estimated(cell, [record]) == Estimator([], 1, lambda cell: Speed(1 / 4, 1 / 12))(cell)
    there = record.environment.model_copy(update={"hardware": {"cpu": "of another machine"}})
    assert estimated(cell, [record.model_copy(update={"environment": there})]) == estimated(cell)
