"""A few examples of each embedded task, in the official formats."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tasks.mini import nlvr2, retrieval, snli_ve, vqa

TINY: dict[str, Callable[[Path], Path]] = {
    "vqa": partial(vqa.ensure_vqa, sizes=vqa.Sizes(40, 2, 4, 2, 5, 2)),
    "nlvr2": partial(nlvr2.ensure_nlvr2, sizes=nlvr2.Sizes(16, 4, 5)),
    "snli_ve": partial(snli_ve.ensure_snli_ve, sizes=snli_ve.Sizes(30, 7, 9)),
    "retrieval": partial(retrieval.ensure_retrieval, sizes=retrieval.Sizes(6, 2, 3)),
}

"""By the task's name; each has at least 18 training examples."""


SPECS = {task: "retrieval[negatives=3]" if task == "retrieval" else task for task in TINY}
"""The tasks as a run is asked for them."""


def make_tiny(task: str, folder: Path) -> Path:
    """The data of one task, made below `folder` on first use."""
    place = folder / task
    place.mkdir(parents=True, exist_ok=True)
    return TINY[task](place)
