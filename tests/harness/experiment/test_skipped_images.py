"""Unreadable images in a run give an error that names the file, or are skipped and counted in the record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment.cell import run_cell
from harness.experiment.plan import Cell, build_cells, open_testbeds
from tasks.mini.retrieval import Sizes as RetrievalSizes
from tasks.mini.retrieval import ensure_retrieval
from tasks.mini.snli_ve import Sizes, ensure_snli_ve


class Silent:
    """Progress that prints nothing."""

    def stage(self, name: str, total: int) -> None:
        """A stage begins."""

    def advance(self, count: int) -> None:
        """Examples are done."""

    def epoch(self, figures: Mapping[str, float]) -> None:
        """An epoch is over."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Sets of three pictures with three hypotheses each: 1 to 9 train, 10 to 12 dev, 13 to 18 test."""
    found = ensure_snli_ve(tmp_path, 0, Sizes(3, 1, 2))
    for number in (2, 5, 14):
        path = found / "flickr30k_images" / f"{number}.jpg"
        path.write_bytes(path.read_bytes()[:400])
    return found


def cell(root: Path, skip: bool, task: str = "snli_ve", size: tuple[int, int] | None = (64, 64)) -> Cell:
    settings = make_settings(
        methods="classifier",
        tasks=task,
        accelerator="cpu",
        data_root=root,
        epochs=1,
        batch_size=9,
        skip_bad_images=skip,
        measured_image_size=size,
    )
    (found,) = build_cells(settings, open_testbeds(settings))
    # As if another task's image of the same run had been unreadable: it is none of this cell's.
    found.testbed.images.skipped["elsewhere.jpg"] = UserError("elsewhere.jpg: no such image")
    return found


def test_skipped_examples_are_counted_per_split_and_their_files_named(root: Path, tmp_path: Path) -> None:
    outcome = run_cell(cell(root, skip=True), tmp_path / "scratch", Silent())
    assert outcome.skipped_files == ("14.jpg", "2.jpg", "5.jpg")
    assert outcome.skipped_examples == {"train": 6, "val": 0, "test": 3}
    assert len(outcome.predictions["test"]) == 15


@pytest.mark.parametrize("kept", [400, 20], ids=["pixels missing", "header missing"])
def test_retrieval_ranks_without_the_images_that_cannot_be_read(kept: int, tmp_path: Path) -> None:
    root = ensure_retrieval(tmp_path, 0, RetrievalSizes(4, 2, 3))
    images = json.loads((root / "dataset_mini.json").read_text())["images"]
    first = next(image["filename"] for image in images if image["split"] == "test")
    path = root / "mini-images" / first
    path.write_bytes(path.read_bytes()[:kept])
    # The measured size is that of the images that can be read.
    outcome = run_cell(cell(root, True, "retrieval[negatives=3]", None), tmp_path / "scratch", Silent())
    assert outcome.skipped_files == (first,)
    assert outcome.skipped_examples == {"train": 0, "val": 0, "test": 5}
    assert len(outcome.predictions["test"]) == 10
    assert {len(prediction["top_images"]) for prediction in outcome.predictions["test"]} == {2}


def test_truncated_file_is_an_error_that_names_it(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"flickr30k_images/(2|5)\.jpg: not a readable image"):
        run_cell(cell(root, skip=False), tmp_path / "scratch", Silent())


@pytest.mark.parametrize(("first", "split"), [(1, "train"), (10, "val"), (13, "test")])
def test_a_split_of_which_nothing_is_left_is_an_error(
    root: Path, tmp_path: Path, first: int, split: str
) -> None:
    last = {"train": 9, "val": 12, "test": 18}[split]
    for number in range(first, last + 1):
        path = root / "flickr30k_images" / f"{number}.jpg"
        path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UserError, match=f"no example of the {split} split has images that can be read"):
        run_cell(cell(root, skip=True), tmp_path / "scratch", Silent())
