"""Render scenes to pixels, fast enough to draw a new picture for every training example.

Anti-aliased masks of every shape are drawn once with PIL and cached; a picture is then a few small blends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tasks.mini.world import COLORS, IMAGE_SIZE, SIZES, Scene

Pixels = NDArray[np.uint8]
_Floats = NDArray[np.float32]

_STAMP = 25  # side of a mask in pixels: the largest thing, rotated, fits
_SUPERSAMPLING = 8
_ROTATION_STEP = 5  # degrees between two cached masks
_TEXTURE_GRID = 9  # nodes along a side of the coarse noise that is interpolated over the background


@dataclass(frozen=True)
class Style:
    """How a scene is drawn. Intensities are on the 0-255 scale; 0 switches an effect off."""

    background: tuple[float, float]
    """Range of the background's grey level."""
    background_tint: float = 0.0
    """Standard deviation of the background's colour cast."""
    gradient: float = 0.0
    """Largest difference of grey level between two opposite borders."""
    texture: float = 0.0
    """Standard deviation of the coarse texture of the background."""
    noise: float = 0.0
    """Standard deviation of the noise of single pixels."""
    rotation_degrees: float = 0.0
    """Things are rotated by at most this angle in either direction."""
    color_jitter: float = 0.0
    """Standard deviation of a thing's RGB values around those of its colour."""
    brightness: float = 0.0
    """Largest shift of the whole picture, up or down."""
    contrast: float = 0.0
    """Largest relative change of contrast around mid-grey, up or down."""
    tint: float = 0.0
    """Largest relative change of each channel's gain, up or down."""
    outline: float = 0.0
    """Probability that a thing is hollow."""
    clutter: int = 0
    """Largest number of thin greyish strokes behind the things."""


DARK = Style(background=(20.0, 60.0), noise=4.0, rotation_degrees=10.0, color_jitter=6.0)
"""Pre-training starts with this style: shapes are learned fast on dark backgrounds."""
PLAIN = Style(
    background=(20.0, 180.0),
    background_tint=6.0,
    gradient=30.0,
    noise=5.0,
    rotation_degrees=12.0,
    color_jitter=8.0,
)
"""Pre-training ends with this style, which has dark to light backgrounds: weights trained on dark ones only are at
chance on light ones."""
TEXTURED = Style(
    background=(70.0, 185.0),
    background_tint=10.0,
    gradient=50.0,
    texture=3.0,
    noise=6.0,
    rotation_degrees=15.0,
    color_jitter=11.0,
    brightness=12.0,
    contrast=0.1,
    tint=0.05,
    outline=0.1,
    clutter=1,
)
"""Style of VQA, SNLI-VE and retrieval: adds texture, strokes, some hollow shapes, and a camera's light and noise."""


def render(scene: Scene, style: Style, rng: np.random.Generator) -> Pixels:
    """The scene as pixels, `(64, 64, 3)` uint8 RGB. Small things are drawn over large ones."""
    pad = _STAMP // 2
    # A margin around the picture lets every stamp be blended whole; it is cropped at the end.
    # Channels come first until the end: numpy is much slower if the innermost axis has 3 elements.
    canvas = np.zeros((3, IMAGE_SIZE + 2 * pad, IMAGE_SIZE + 2 * pad), np.float32)
    picture = canvas[:, pad:-pad, pad:-pad]
    picture[:] = _background(style, rng)
    if style.clutter:
        for _ in range(int(rng.integers(style.clutter + 1))):
            _draw_stroke(picture, rng)
    for thing in sorted(scene.things, key=lambda thing: -SIZES[thing.size][0]):
        low, high = SIZES[thing.size]
        mask = _stamp(
            thing.shape,
            int(rng.integers(low, high + 1)),
            _random_rotation(style, rng),
            bool(rng.random() < style.outline),
        )
        color = np.array(COLORS[thing.color], np.float32).reshape(3, 1, 1)
        if style.color_jitter:
            color += rng.normal(0.0, style.color_jitter, (3, 1, 1)).astype(np.float32)
        area = canvas[:, thing.y : thing.y + _STAMP, thing.x : thing.x + _STAMP]
        area += mask * (color - area)
    return _photograph(picture, style, rng)


def _background(style: Style, rng: np.random.Generator) -> _Floats:
    """The background, broadcastable to `(3, 64, 64)`."""
    grey = rng.uniform(*style.background) + rng.normal(0.0, style.background_tint, 3)
    background: _Floats = grey.astype(np.float32).reshape(3, 1, 1)
    relief = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    if style.gradient:
        angle = rng.uniform(0.0, 2.0 * math.pi)
        slope = rng.uniform(0.0, style.gradient)
        rows, columns = _coordinates()
        relief += np.float32(slope * math.cos(angle)) * columns + np.float32(slope * math.sin(angle)) * rows
    if style.texture:
        nodes = rng.normal(0.0, style.texture, (_TEXTURE_GRID, _TEXTURE_GRID)).astype(np.float32)
        relief += _interpolated(nodes)
    return background + relief


def _draw_stroke(picture: _Floats, rng: np.random.Generator) -> None:
    """Blends one anti-aliased straight stroke, 1 to 2 pixels wide, into `(3, 64, 64)`."""
    x, y, angle = rng.uniform(0, IMAGE_SIZE), rng.uniform(0, IMAGE_SIZE), rng.uniform(0, math.pi)
    half_length, half_width = rng.uniform(8.0, 24.0), rng.uniform(0.5, 1.0)
    color = (rng.uniform(60.0, 215.0) + rng.normal(0.0, 8.0, 3)).astype(np.float32)
    rows, columns = _coordinates()
    dx = columns * np.float32(IMAGE_SIZE) + np.float32(IMAGE_SIZE / 2 - x)
    dy = rows * np.float32(IMAGE_SIZE) + np.float32(IMAGE_SIZE / 2 - y)
    cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    along, across = np.abs(dx * cosine + dy * sine), np.abs(dy * cosine - dx * sine)
    rows_hit, columns_hit = np.nonzero((across < half_width + 0.5) & (along < half_length + 0.5))
    alpha = np.minimum(half_width + 0.5 - across[rows_hit, columns_hit], 1.0) * np.minimum(
        half_length + 0.5 - along[rows_hit, columns_hit], 1.0
    )
    under = picture[:, rows_hit, columns_hit]
    picture[:, rows_hit, columns_hit] = under + alpha * (color[:, None] - under)


def _random_rotation(style: Style, rng: np.random.Generator) -> int:
    """A random rotation in degrees, rounded to a multiple of `_ROTATION_STEP` so that few masks are needed."""
    if not style.rotation_degrees:
        return 0
    return _ROTATION_STEP * round(
        rng.uniform(-style.rotation_degrees, style.rotation_degrees) / _ROTATION_STEP
    )


def _photograph(picture: _Floats, style: Style, rng: np.random.Generator) -> Pixels:
    """Apply light, colour cast and sensor noise to `(3, 64, 64)`; returns 8-bit `(64, 64, 3)`."""
    gain = np.ones((3, 1, 1))
    shift = 0.0
    if style.contrast or style.tint:
        gain = (1.0 + rng.uniform(-style.contrast, style.contrast)) * (
            1.0 + rng.uniform(-style.tint, style.tint, (3, 1, 1))
        )
    if style.brightness:
        shift = rng.uniform(-style.brightness, style.brightness)
    taken = (picture - np.float32(128.0)) * gain.astype(np.float32) + np.float32(128.0 + shift)
    if style.noise:
        grain = _grain()
        start = int(rng.integers(grain.size - taken.size))
        taken += np.float32(style.noise) * grain[start : start + taken.size].reshape(taken.shape)
    np.maximum(taken, np.float32(0.0), out=taken)
    np.minimum(taken, np.float32(255.0), out=taken)
    return np.ascontiguousarray(taken.astype(np.uint8).transpose(1, 2, 0))


@cache
def _grain() -> _Floats:
    """A million standard normal values, of which every picture takes a slice: drawing new ones is slow."""
    return np.random.default_rng(0).standard_normal(1 << 20, np.float32)


@cache
def _coordinates() -> tuple[_Floats, _Floats]:
    """Row and column of every pixel, `(64, 1)` and `(1, 64)`, from -0.5 to 0.5."""
    line = ((np.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE - 0.5).astype(np.float32)
    return line[:, None], line[None, :]


def _interpolated(nodes: _Floats) -> _Floats:
    """The texture's nodes linearly interpolated to pixels, `(64, 64)`."""
    low, low_share, high_share = _between_nodes()
    rows = _blend(nodes[low], low_share[:, None], nodes[low + 1], high_share[:, None])
    return _blend(rows[:, low], low_share, rows[:, low + 1], high_share)


def _blend(low: _Floats, low_share: _Floats, high: _Floats, high_share: _Floats) -> _Floats:
    """`low · low_share + high · high_share`, rounded as by a fused multiply-add.

    Not a matrix product: BLAS rounds differently on different processors, and so would pictures.
    """
    return (high.astype(np.float64) * high_share + low * low_share).astype(np.float32)


@cache
def _between_nodes() -> tuple[NDArray[np.int64], _Floats, _Floats]:
    """For each pixel along a side: the texture node before it, and the weights of that node and the next, `(64,)`."""
    position = np.linspace(0.0, _TEXTURE_GRID - 1, IMAGE_SIZE)
    low = np.minimum(position.astype(np.int64), _TEXTURE_GRID - 2)
    shares = (1.0 - np.abs(position - node) for node in (low, low + 1))
    low_share, high_share = (share.astype(np.float32) for share in shares)
    return low, low_share, high_share


@cache
def _stamp(shape: str, extent: int, degrees: int, hollow: bool) -> _Floats:
    """Coverage of a centred shape of `extent` pixels, `(25, 25)` in [0, 1]."""
    side = _STAMP * _SUPERSAMPLING
    turn = math.radians(degrees)
    scale = extent / 2 * _SUPERSAMPLING
    corners = [
        (
            side / 2 + scale * (x * math.cos(turn) - y * math.sin(turn)),
            side / 2 + scale * (x * math.sin(turn) + y * math.cos(turn)),
        )
        for x, y in _outline(shape)
    ]
    filled = Image.new("L", (side, side))
    ImageDraw.Draw(filled).polygon(corners, fill=255)
    if hollow:
        # The inner half of a stroke along the edge: 2 px for small things, 3 px for large ones.
        stroke = Image.new("L", (side, side))
        width = 2 * _SUPERSAMPLING * (2 if extent <= SIZES["small"][1] else 3)
        ImageDraw.Draw(stroke).line([*corners, *corners[:2]], fill=255, width=width, joint="curve")
        filled = Image.composite(stroke, Image.new("L", (side, side)), filled)
    small = filled.resize((_STAMP, _STAMP), Image.Resampling.BOX)
    mask = np.asarray(small, np.float32) / np.float32(255.0)
    mask.flags.writeable = False  # shared by every caller
    return mask


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a shape in the square from -1 to 1, `y` downwards; curves are fine polygons."""
    match shape:
        case "circle":
            return [(math.cos(t), math.sin(t)) for t in np.linspace(0, 2 * math.pi, 40, endpoint=False)]
        case "square":
            return [(-0.92, -0.92), (0.92, -0.92), (0.92, 0.92), (-0.92, 0.92)]
        case "triangle":
            return [(0.0, -1.0), (1.05, 0.9), (-1.05, 0.9)]
        case "star":
            radii = [1.15, 0.46] * 5
            return [
                (r * math.sin(k * math.pi / 5), 0.08 - r * math.cos(k * math.pi / 5))
                for k, r in enumerate(radii)
            ]
        case "cross":
            a, b = 1.02, 0.34
            return [
                (-b, -a),
                (b, -a),
                (b, -b),
                (a, -b),
                (a, b),
                (b, b),
                (b, a),
                (-b, a),
                (-b, b),
                (-a, b),
                (-a, -b),
                (-b, -b),
            ]
        case "heart":
            # The usual heart curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled.
            return [
                (
                    1.05 * math.sin(t) ** 3,
                    -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) + 2.5)
                    / 14.5,
                )
                for t in np.linspace(0, 2 * math.pi, 48, endpoint=False)
            ]
    raise ValueError(f"unknown shape '{shape}'")
