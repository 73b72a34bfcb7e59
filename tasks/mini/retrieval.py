"""Write descriptions of drawn pictures in the format of Karpathy's split files.

Each picture has five descriptions. Pictures come in groups that share a theme (a few colours and shapes), so that
a picture's descriptions must be distinguished from those of similar pictures. Recalls on these files are recalls on
`mini`, never on Flickr30k or COCO.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.mini.clauses import Clause
from tasks.mini.descriptions import describe, sample_clauses
from tasks.mini.folder import Generation, check_sizes, write_json
from tasks.mini.render import TEXTURED, render
from tasks.mini.scenes import Things, new_scene, sample_theme
from tasks.mini.world import Scene

VERSION = 2
"""Increase with every change that alters a file."""

DESCRIPTIONS = 5
"""Descriptions per picture, as in Flickr30k and COCO."""

_THEME = 4, 3  # colours and shapes of a group
_GROUP = 5  # pictures per theme


@dataclass(frozen=True)
class Sizes:
    """Number of pictures in each split."""

    train_images: int = 160
    val_images: int = 20
    test_images: int = 60

    def __post_init__(self) -> None:
        check_sizes(self)

    def splits(self) -> dict[str, int]:
        """Split name to number of pictures."""
        return {"train": self.train_images, "val": self.val_images, "test": self.test_images}


def ensure_retrieval(cache_root: Path, seed: int = 0, sizes: Sizes = Sizes()) -> Path:
    """The folder with the benchmark's files, generated under `cache_root` if it does not exist yet."""
    return _GENERATION.ensure(cache_root, seed, sizes)


def _write(root: Path, seed: int, sizes: Sizes) -> None:
    (root / "mini-images").mkdir()
    taken: set[Things] = set()
    images: list[dict[str, Any]] = []
    for index, (split, number) in enumerate(sizes.splits().items()):
        rng = np.random.default_rng([seed, index])
        for scene, clauses in sample_split(number, taken, rng):
            image = len(images)
            picture = Image.fromarray(render(scene, TEXTURED, rng))
            picture.save(root / "mini-images" / f"{image}.jpg", quality=95, subsampling=0)
            sentences = []
            for k, part in enumerate(clauses):
                raw, sentid = describe(part, rng), image * DESCRIPTIONS + k
                sentences.append({"imgid": image, "raw": raw, "sentid": sentid, "tokens": raw.split()})
            images.append(
                {
                    "filename": f"{image}.jpg",
                    "imgid": image,
                    "sentids": [sentence["sentid"] for sentence in sentences],
                    "sentences": sentences,
                    "split": split,
                }
            )
    write_json(root / "dataset_mini.json", {"dataset": "mini", "images": images})


_GENERATION: Generation[Sizes] = Generation("retrieval", VERSION, _write)

Described = tuple[Scene, list[tuple[Clause, ...]]]
"""A scene and the clauses of each of its descriptions."""


def sample_split(number: int, taken: set[Things], rng: np.random.Generator) -> list[Described]:
    """New scenes, each with the clauses of five descriptions that together hold of no other. Adds them to `taken`."""
    scenes: list[Scene] = []
    while len(scenes) < number:
        if len(scenes) % _GROUP == 0:
            theme = sample_theme(*_THEME, rng)
        scenes.append(new_scene("retrieval", theme, taken, rng))
        taken.add(frozenset(scenes[-1].things))
    return [(scene, _distinctive(scene, [s for s in scenes if s is not scene], rng)) for scene in scenes]


def _distinctive(scene: Scene, others: list[Scene], rng: np.random.Generator) -> list[tuple[Clause, ...]]:
    while True:
        found: dict[tuple[Clause, ...], None] = {}
        while len(found) < DESCRIPTIONS:
            found[sample_clauses(scene, rng)] = None
        together = {clause for clauses in found for clause in clauses}
        if not any(all(clause.holds(other) for clause in together) for other in others):
            return list(found)
