"""Questions about objects in drawn pictures: balance, truth, and the three kinds of absent objects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tasks.mini.pope import CATEGORIES, Sizes, absent_object, ensure_pope, objects_of
from tasks.mini.world import Scene, Thing

SCENE = Scene((Thing("circle", "red", "small", 8, 8), Thing("star", "blue", "large", 40, 40)))


def test_absent_objects_by_category() -> None:
    rng = np.random.default_rng(0)
    popular = [("red", "circle"), ("green", "heart"), ("white", "cross")]
    assert absent_object(SCENE, "popular", popular, {("green", "heart")}, rng) == ("white", "cross")
    alike = {absent_object(SCENE, "adversarial", popular, set(), rng) for _ in range(40)}
    assert alike == {("red", "star"), ("blue", "circle")}
    drawn = {absent_object(SCENE, "random", popular, set(), rng) for _ in range(40)}
    assert len(drawn) > 10
    assert not drawn & set(objects_of(SCENE))


def test_every_picture_has_as_many_present_as_absent_objects(tmp_path: Path) -> None:
    root = ensure_pope(tmp_path, sizes=Sizes(train=2, val=2, test=3))
    for name in ("train", "val", *CATEGORIES):
        lines = [json.loads(line) for line in (root / f"coco_pope_{name}.json").read_text().splitlines()]
        by_image: dict[str, list[str]] = {}
        for line in lines:
            by_image.setdefault(line["image"], []).append(line["label"])
        assert all(sorted(labels) == ["no"] * 3 + ["yes"] * 3 for labels in by_image.values())
        folder = "train2014" if name == "train" else "val2014"
        assert all((root / folder / image).is_file() for image in by_image)
