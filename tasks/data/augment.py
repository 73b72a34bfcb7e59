"""RandAugment (Cubuk et al., 2020) as used to train ViLT and METER.

Two operations at magnitude 9 of 30, drawn with replacement, are applied to the decoded photograph before it is
resized. The pool is that of ViLT's `pixelbert_randaug`, which METER adopted: the sixteen operations of the
EfficientNet code without colour inversion, "because texts often contain color information as well", and without
cutout, which may hide small objects (Kim et al., 2021, section 3). Some of the remaining operations change colours
too (`posterize` leaves one bit per channel); the published runs use them on VQA all the same.

It is off by default, and should stay off on the embedded benchmark: half of its questions are about colours, and a
translation by 30 pixels moves half of a 64-pixel image out of view.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

COUNT, MAGNITUDE, LARGEST_MAGNITUDE = 2, 9, 30


_ADDED_BELOW = 128  # `solarize_add` changes the darker half of the levels


Augment = Callable[[Image.Image, np.random.Generator], Image.Image]
"""Maps an RGB image to one of the same size; all randomness comes from the generator."""


@dataclass(frozen=True)
class Operation:
    """One operation of the pool.

    apply: changes an image with a given strength.
    least, most: strength at magnitude 0 and at the largest magnitude.
    either_way: the sign of the strength is random.
    """

    apply: Callable[[Image.Image, float], Image.Image]
    least: float = 0.0
    most: float = 1.0
    either_way: bool = False

    def strength(self, magnitude: int) -> float:
        """Strength at a magnitude, in which it is linear."""
        return self.least + (self.most - self.least) * magnitude / LARGEST_MAGNITUDE


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    return ImageOps.posterize(image, max(1, int(bits)))


def _solarize_add(image: Image.Image, addition: float) -> Image.Image:
    levels = [min(255, level + int(addition)) if level < _ADDED_BELOW else level for level in range(256)]
    return image.point(levels * 3)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Nearest-neighbour sampling, black outside the image, as published."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


OPERATIONS: Mapping[str, Operation] = {
    "autocontrast": Operation(lambda image, _: ImageOps.autocontrast(image)),
    "equalize": Operation(lambda image, _: ImageOps.equalize(image)),
    "rotate": Operation(lambda image, degrees: image.rotate(degrees), 0, 30, either_way=True),
    "posterize": Operation(_posterize, 0, 4),
    "solarize": Operation(lambda image, threshold: ImageOps.solarize(image, int(threshold)), 0, 256),
    "solarize_add": Operation(_solarize_add, 0, 110),
    "color": Operation(lambda image, factor: ImageEnhance.Color(image).enhance(factor), 0.1, 1.9),
    "contrast": Operation(lambda image, factor: ImageEnhance.Contrast(image).enhance(factor), 0.1, 1.9),
    "brightness": Operation(lambda image, factor: ImageEnhance.Brightness(image).enhance(factor), 0.1, 1.9),
    "sharpness": Operation(lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor), 0.1, 1.9),
    "shear_x": Operation(lambda image, shear: _affine(image, 1, shear, 0, 0, 1, 0), 0, 0.3, either_way=True),
    "shear_y": Operation(lambda image, shear: _affine(image, 1, 0, 0, shear, 1, 0), 0, 0.3, either_way=True),
    "translate_x": Operation(
        lambda image, pixels: _affine(image, 1, 0, pixels, 0, 1, 0), 0, 100, either_way=True
    ),
    "translate_y": Operation(
        lambda image, pixels: _affine(image, 1, 0, 0, 0, 1, pixels), 0, 100, either_way=True
    ),
}
"""The pool: 14 operations, with the strengths (degrees, bits, levels, factors, pixels) of the published code."""


def rand_augment(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Apply `COUNT` random operations at `MAGNITUDE`; those with a direction take either one equally often."""
    for name in generator.choice(list(OPERATIONS), COUNT).tolist():
        operation = OPERATIONS[name]
        sign = -1.0 if generator.random() < 0.5 and operation.either_way else 1.0
        image = operation.apply(image, sign * operation.strength(MAGNITUDE))
    return image


AUGMENTATIONS: Mapping[str, Augment | None] = {"none": None, "randaugment": rand_augment}
"""Values of `--augment`."""


def draw_seed(seed: int, epoch: int, example: str, position: int) -> int:
    """Seed of the augmentation of an example's `position`-th image in an epoch, the same in every process."""
    digest = hashlib.sha256(f"{seed}:{epoch}:{position}:{example}".encode()).digest()
    return int.from_bytes(digest[:8])
