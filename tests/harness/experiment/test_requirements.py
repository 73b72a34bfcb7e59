"""Memory and work of cells on GPUs that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config.sources import make_settings
from harness.experiment.plan import Cell, build_cells, open_testbeds
from harness.experiment.requirements import Requirements, describe, requirements
from tests.support.tiny_tasks import SPECS, make_tiny


def cells_of(
    task: str, folder: Path, methods: str, backbone: str = "vilt-mini", **more: object
) -> list[Cell]:
    settings = make_settings(
        methods=methods,
        tasks=SPECS[task],
        data_root=make_tiny(task, folder),
        epochs=2,
        backbone=backbone,
        accelerator="cpu",
        **more,
    )
    return build_cells(settings, open_testbeds(settings))


def test_full_tuning_needs_three_passes_and_four_copies_of_the_weights(tmp_path: Path) -> None:
    full, classifier = (requirements(cell) for cell in cells_of("vqa", tmp_path, "full,classifier"))
    # The backward pass has two products for each of the forward pass, but none for the gradient of the pixels.
    assert 2.9 * full.forward_macs < full.training_macs < 3 * full.forward_macs
    # Token types are trained too: gradients pass through the frozen backbone, but its matrices get none.
    assert 2 * classifier.forward_macs < classifier.training_macs < 2.1 * classifier.forward_macs
    assert classifier.example_bytes < full.example_bytes
    assert classifier.fixed_bytes < full.fixed_bytes / 2
    assert classifier.training_examples == full.training_examples


def test_retrieval_is_counted_by_pairs(tmp_path: Path) -> None:
    (cell,) = cells_of("retrieval", tmp_path, "bitfit", "meter-mini")
    needed = requirements(cell)
    images = {
        split: len({each.group for each in cell.testbed.data.splits[split]}) for split in ("val", "test")
    }
    pairs = {split: images[split] * len(cell.testbed.data.splits[split]) for split in images}
    assert needed.test_pairs == pairs["test"]
    assert needed.pairs == 3 * pairs["val"] + pairs["test"]  # after each of two epochs, and at the end


def test_hours_and_memory_follow_from_the_stated_assumptions() -> None:
    needed = Requirements(2**31, 2**29, 10**12, 10**11, 67_000, 670_000, 0, 0)
    assert needed.memory_gib(4) == 4.0
    # 2 × 1.34e17 operations at a fifth of 67e12 a second
    assert needed.hours("32-true") == pytest.approx(2 * 1.34e17 / (0.2 * 67e12) / 3600)


def test_each_method_is_described_for_one_gpu_eight_and_slurm_with_the_basis_of_the_figures(
    tmp_path: Path,
) -> None:
    text = "\n".join(describe(cells_of("nlvr2", tmp_path, "lora", seeds=[0, 1, 2])))
    for part in (
        "lora on nlvr2",
        "one GPU",
        "eight GPUs",
        "Slurm, one job with one GPU per cell: 3 ×",
        "20%",
        "not measured",
    ):
        assert part in text
