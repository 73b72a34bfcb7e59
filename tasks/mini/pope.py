"""Write questions about objects in drawn pictures in POPE's file format.

An object is a colour with a shape. Each picture has as many present as absent objects, and the absent ones differ by
file as in POPE: drawn at random, the most frequent ones of all pictures, or those most like what is in the picture.
Accuracies on these files are accuracies on `mini`, never on POPE.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.mini.folder import Generation, check_sizes, write_json_lines
from tasks.mini.render import TEXTURED, render
from tasks.mini.scenes import Things, free_scene
from tasks.mini.world import COLORS, SHAPES, Scene, pick

VERSION = 1
"""Increase with every change that alters a file."""

CATEGORIES = ("random", "popular", "adversarial")

Object = tuple[str, str]
"""A colour and a shape."""

_OBJECTS: tuple[Object, ...] = tuple((color, shape) for color in COLORS for shape in SHAPES)


@dataclass(frozen=True)
class Sizes:
    """Number of pictures in each split, and of present objects asked about in each picture.

    There are as many absent ones; the test split has them in each of the three categories.
    """

    train: int = 500
    val: int = 80
    test: int = 150
    objects: int = 3

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.objects > 4:
            raise ValueError(f"objects must be at most 4, got {self.objects}")


def ensure_pope(cache_root: Path, seed: int = 0, sizes: Sizes = Sizes()) -> Path:
    """The folder with the benchmark's files, generated under `cache_root` if it does not exist yet."""
    return _GENERATION.ensure(cache_root, seed, sizes)


def _write(root: Path, seed: int, sizes: Sizes) -> None:
    taken: set[Things] = set()
    for index, split in enumerate(("train", "val", "test")):
        rng = np.random.default_rng([seed, index])
        scenes: list[tuple[int, Scene]] = []
        while len(scenes) < getattr(sizes, split):
            scene = free_scene(taken, rng)
            if len(objects_of(scene)) >= sizes.objects:
                taken.add(frozenset(scene.things))
                scenes.append((len(taken), scene))
        folder = "train2014" if split == "train" else "val2014"
        (root / folder).mkdir(exist_ok=True)
        for number, scene in scenes:
            picture = Image.fromarray(render(scene, TEXTURED, rng))
            picture.save(root / folder / _name(folder, number), quality=95, subsampling=0)
        counts = Counter(each for _, scene in scenes for each in objects_of(scene))
        popular = sorted(_OBJECTS, key=lambda each: (-counts[each], each))
        files = [split] if split != "test" else CATEGORIES
        for file in files:
            lines: list[dict[str, Any]] = []
            for number, scene in scenes:
                kinds = [file] * sizes.objects if split == "test" else list(CATEGORIES)
                asked = _ask(scene, kinds[: sizes.objects], popular, rng)
                lines += [
                    {
                        "question_id": len(lines) + place + 1,
                        "image": _name(folder, number),
                        "text": f"Is there {_a(each)} in the image?",
                        "label": label,
                    }
                    for place, (each, label) in enumerate(asked)
                ]
            write_json_lines(root / f"coco_pope_{file}.json", lines)


_GENERATION: Generation[Sizes] = Generation("pope", VERSION, _write)


def objects_of(scene: Scene) -> list[Object]:
    """The different objects in a scene."""
    return list(dict.fromkeys((thing.color, thing.shape) for thing in scene.things))


def absent_object(
    scene: Scene, category: str, popular: Sequence[Object], used: set[Object], rng: np.random.Generator
) -> Object:
    """An object that is not in the scene and not in `used`. popular: all objects, the most frequent first."""
    present = set(objects_of(scene))
    if category == "popular":
        return next(each for each in popular if each not in present | used)
    candidates = [each for each in _OBJECTS if each not in present | used]
    if category == "adversarial":
        colors, shapes = {color for color, _ in present}, {shape for _, shape in present}
        likeness = [(color in colors) + (shape in shapes) for color, shape in candidates]
        candidates = [e for e, like in zip(candidates, likeness, strict=True) if like == max(likeness)]
    return pick(candidates, rng)


def _ask(
    scene: Scene, kinds: Sequence[str], popular: Sequence[Object], rng: np.random.Generator
) -> list[tuple[Object, str]]:
    """Present and absent objects in turn, with their labels."""
    present = objects_of(scene)
    order = rng.permutation(len(present)).tolist()[: len(kinds)]
    asked: list[tuple[Object, str]] = []
    used: set[Object] = set()
    for place, kind in zip(order, kinds, strict=True):
        absent = absent_object(scene, kind, popular, used, rng)
        used.add(absent)
        asked += [(present[place], "yes"), (absent, "no")]
    return asked


def _name(folder: str, number: int) -> str:
    return f"COCO_{folder}_{number:012d}.jpg"


def _a(each: Object) -> str:
    text = " ".join(each)
    return f"an {text}" if text.startswith("o") else f"a {text}"
