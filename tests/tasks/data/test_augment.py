"""RandAugment: the effect of each operation, and draws that depend on seed, epoch and example alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.base import Batch, Example
from tasks.data.augment import AUGMENTATIONS, MAGNITUDE, OPERATIONS, draw_seed, rand_augment
from tasks.data.image_cache import ImageCache
from tasks.data.loader import Loader
from tests.support.word_processor import TASK, WordProcessor


def picture(*levels: int) -> Image.Image:
    """One row of grey levels."""
    return Image.fromarray(np.array([levels], np.uint8)).convert("RGB")


def levels(image: Image.Image, channel: int = 0) -> list[int]:
    row: list[int] = np.asarray(image)[0, :, channel].tolist()
    return row


def apply(name: str, image: Image.Image, strength: float | None = None) -> Image.Image:
    operation = OPERATIONS[name]
    return operation.apply(image, operation.strength(MAGNITUDE) if strength is None else strength)


@pytest.mark.parametrize(
    ("name", "strength"),
    [
        ("rotate", 9),
        ("posterize", 1.2),
        ("solarize", 76.8),
        ("solarize_add", 33),
        ("color", 0.64),
        ("contrast", 0.64),
        ("brightness", 0.64),
        ("sharpness", 0.64),
        ("shear_x", 0.09),
        ("translate_y", 30),
    ],
)
def test_magnitude_9_of_30_is_three_tenths_of_the_range(name: str, strength: float) -> None:
    assert OPERATIONS[name].strength(9) == pytest.approx(strength)


def test_the_pool_is_the_published_one_without_inversion_and_cutout() -> None:
    assert len(OPERATIONS) == 14
    assert not {"invert", "cutout"} & set(OPERATIONS)
    assert {name for name, operation in OPERATIONS.items() if operation.either_way} == {
        "rotate",
        "shear_x",
        "shear_y",
        "translate_x",
        "translate_y",
    }


def test_operations_on_grey_levels() -> None:
    assert levels(apply("autocontrast", picture(50, 100, 150))) == [0, 127, 255]
    assert levels(apply("equalize", picture(*range(100, 116)))) == sorted(
        levels(apply("equalize", picture(*range(100, 116))))
    )
    assert levels(apply("posterize", picture(5, 127, 128, 255))) == [0, 0, 128, 128]
    assert levels(apply("solarize", picture(10, 75, 76, 200))) == [10, 75, 179, 55]
    assert levels(apply("solarize_add", picture(0, 127, 128, 250))) == [33, 160, 128, 250]
    assert levels(apply("brightness", picture(0, 100, 200))) == [0, 64, 128]
    assert levels(apply("contrast", picture(50, 150))) == [68, 132]  # towards the mean of 100


def test_color_moves_towards_grey_and_sharpness_blurs() -> None:
    red = np.asarray(apply("color", Image.new("RGB", (1, 1), (200, 0, 0))))[0, 0].tolist()
    assert red[0] < 200
    assert red[1] == red[2] > 0
    edge = np.zeros((5, 5, 3), np.uint8)
    edge[:, 3:] = 200
    blurred = np.asarray(apply("sharpness", Image.fromarray(edge))).astype(int)
    assert 0 < blurred[2, 2, 0] < blurred[2, 3, 0] < 200


def test_geometric_operations() -> None:
    image = picture(1, 2, 3, 4)
    assert levels(apply("translate_x", image, 1)) == [2, 3, 4, 0]
    assert levels(apply("translate_x", image, -1)) == [0, 1, 2, 3]
    column = image.transpose(Image.Transpose.ROTATE_270)
    assert np.asarray(apply("translate_y", column, 2))[:, 0, 0].tolist() == [3, 4, 0, 0]
    square = np.zeros((21, 21, 3), np.uint8)
    square[:, 10] = 255
    for name, there, back in (("shear_x", 0.5, -0.5), ("shear_y", 0.5, -0.5), ("rotate", 30, -30)):
        one = np.asarray(apply(name, Image.fromarray(square), there))
        other = np.asarray(apply(name, Image.fromarray(square), back))
        if name == "shear_y":
            continue  # an upright line stays upright
        assert not np.array_equal(one, square)
        assert not np.array_equal(one, other)
    lying = Image.fromarray(square.transpose(1, 0, 2).copy())
    assert not np.array_equal(np.asarray(apply("shear_y", lying, 0.5)), np.asarray(lying))


def test_two_operations_are_drawn_uniformly_with_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[str, float]] = []
    for name, operation in list(OPERATIONS.items()):

        def record(image: Image.Image, strength: float, name: str = name) -> Image.Image:
            used.append((name, strength))
            return image

        changed: Any = dict(vars(operation)) | {"apply": record}
        monkeypatch.setitem(OPERATIONS, name, type(operation)(**changed))  # type: ignore[misc]
    for draw in range(3000):
        rand_augment(picture(0), np.random.default_rng(draw))
    assert len(used) == 6000
    counts = Counter(name for name, _ in used)
    assert all(330 < counts[name] < 530 for name in OPERATIONS)  # 429 expected
    assert sum(used[k][0] == used[k + 1][0] for k in range(0, 6000, 2)) > 100  # 214 expected
    angles = [strength for name, strength in used if name == "rotate"]
    assert set(angles) == {9, -9}
    assert 0.35 < np.mean(np.array(angles) > 0) < 0.65


def test_a_draw_is_a_function_of_seed_epoch_example_and_position() -> None:
    seeds = {
        draw_seed(*key)
        for key in [(0, 0, "a", 0), (1, 0, "a", 0), (0, 1, "a", 0), (0, 0, "b", 0), (0, 0, "a", 1)]
    }
    assert len(seeds) == 5
    assert draw_seed(3, 2, "x", 1) == draw_seed(3, 2, "x", 1)


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    """Two examples for each of six noisy images."""
    rng = np.random.default_rng(0)
    for k in range(6):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{k}.png")
    return [Example(str(k), "x", (tmp_path / f"{k // 2}.png",), k, str(k)) for k in range(12)]


def images_of(loader: Loader, epoch: int) -> dict[str, torch.Tensor]:
    loader.set_epoch(epoch)
    batches: list[Batch] = list(loader)
    return {
        identifier: row
        for batch in batches
        for identifier, row in zip(batch.ids, batch.inputs[0].pixels, strict=True)
    }


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def make(examples: list[Example], batch_size: int = 4, **more: Any) -> Loader:
    return Loader(examples, TASK, WordProcessor(16), batch_size, seed=5, shuffle=True, **more)


def test_augmented_images_do_not_depend_on_workers_or_batches(examples: list[Example]) -> None:
    first = images_of(make(examples, augment=rand_augment), 1)
    assert same(images_of(make(examples, augment=rand_augment, workers=2), 1), first)
    assert same(images_of(make(examples, batch_size=3, augment=rand_augment, bucket=False), 1), first)


def test_every_epoch_and_example_is_augmented_differently(examples: list[Example]) -> None:
    loader = make(examples, augment=rand_augment)
    first, second = images_of(loader, 0), images_of(loader, 1)
    assert sum(not torch.equal(first[key], second[key]) for key in first) > 8
    assert sum(not torch.equal(first[str(k)], first[str(k + 1)]) for k in range(0, 12, 2)) > 3
    assert same(images_of(loader, 0), first)


def test_without_augmentation_images_are_unchanged_and_cached(examples: list[Example]) -> None:
    plain = images_of(make(examples), 0)
    assert same(images_of(make(examples, augment=AUGMENTATIONS["none"]), 0), plain)
    cache = ImageCache(WordProcessor(16))
    images_of(make(examples, cache=cache, augment=rand_augment), 0)
    assert len(cache) == 0
    images_of(make(examples, cache=cache), 0)
    assert len(cache) == 6
    # The cache holds unaugmented images: augmented batches neither read it nor add to it.
    changed = images_of(make(examples, cache=cache, augment=rand_augment), 0)
    assert not same(changed, plain)
    assert same(images_of(make(examples, cache=cache), 0), plain)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_left_out_and_counted_with_augmentation_too(
    examples: list[Example], workers: int
) -> None:
    path = examples[2].images[0]
    path.write_bytes(path.read_bytes()[:200])
    loader = make(examples, augment=rand_augment, skip_bad_images=True, workers=workers)
    for epoch in range(2):
        assert set(images_of(loader, epoch)) == {str(k) for k in range(12)} - {"2", "3"}
    assert loader.cache.skipped.keys() == {str(path)}
