"""Estimates of a cell's time count its passes through the backbone."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config.sources import make_settings
from harness.experiment.estimate import PASSES, estimate_seconds, evaluation_passes
from harness.experiment.plan import Cell, build_cells, open_testbeds
from tasks.mini.retrieval import Sizes, ensure_retrieval
from tasks.mini.vqa import Sizes as VQASizes
from tasks.mini.vqa import ensure_vqa


def cell_of(task: str, root: Path, method: str = "full") -> Cell:
    settings = make_settings(
        methods=method,
        tasks=task,
        backbone="vilt-mini",
        data_root=root,
        epochs=2,
        accelerator="cpu",
    )
    (cell,) = build_cells(settings, open_testbeds(settings))
    return cell


def test_retrieval_trains_on_negatives_and_is_evaluated_on_all_pairs(tmp_path: Path) -> None:
    root = ensure_retrieval(tmp_path, sizes=Sizes(10, 2, 3))
    many, few = cell_of("retrieval", root), cell_of("retrieval[negatives=3]", root)
    assert (many.testbed.task.texts_per_example, few.testbed.task.texts_per_example) == (16, 4)
    evaluated = 3 * (2 * 10) + 3 * 15  # two epochs and the report on validation data, then the test split
    assert evaluation_passes(many.testbed) == evaluated
    ratio = (PASSES * 2 * 50 * 16 + evaluated) / (PASSES * 2 * 50 * 4 + evaluated)
    assert estimate_seconds(many, []) / estimate_seconds(few, []) == pytest.approx(ratio)


def test_estimate_includes_the_epochs_of_the_search(tmp_path: Path) -> None:
    root = ensure_vqa(tmp_path, sizes=VQASizes(20, 2, 4, 2, 5, 2))
    plain = cell_of("vqa", root)
    assert plain.testbed.task.texts_per_example == 1
    splits = plain.testbed.data.splits
    assert evaluation_passes(plain.testbed) == 3 * len(splits["val"]) + len(splits["test"])
    longer = estimate_seconds(cell_of("vqa", root, "das"), []) - estimate_seconds(plain, [])
    train = PASSES * 2 * len(splits["train"])
    passes = train + evaluation_passes(plain.testbed)
    assert longer / estimate_seconds(plain, []) == pytest.approx(PASSES * 3 * len(splits["train"]) / passes)
