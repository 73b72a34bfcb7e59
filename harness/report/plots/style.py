"""Common style of all figures, and deterministic output.

Colours are those of Okabe & Ito (Color Universal Design, 2008), which people with common forms of colour blindness
can distinguish, then muted ones of Tol (Colour Schemes, SRON, 2021) and a few more, so that each built-in method has
its own. Every method also has a marker.
"""

from __future__ import annotations

import io
import textwrap
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from harness.registry import built_in_names

INK = "#1c1c1c"
GREY = "#8a8a8a"
PAPER = "#ffffff"
_AXES, _GRID = "#444444", "#e4e4e4"

COLORS = (
    *(INK, "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#882255", "#332288", "#999933", "#44aa99", "#7f4a1e", "#a050c8"),
    *("#aa4499", "#6c8ebf", "#c1272d", "#7cb518"),
)

_MARKERS = "osD^vPX<>hp*"


_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)), (0, (1, 1)))


DARK: Mapping[str, str] = {
    **{INK: "#e6e6e6", _AXES: "#b8b8b8", _GRID: "#3a3d42", PAPER: "#16181d", GREY: "#9a9a9a"},
    **{"#0072b2": "#4a9eda", "#882255": "#e0607f", "#332288": "#8f82dd", "#7f4a1e": "#bd8558"},
    **{"#a050c8": "#bd7fdd", "#aa4499": "#cf7bc0", "#c1272d": "#ef6a6e", "#555555": "#b0b0b0"},
}
"""Colours on a dark page, by colour on a white one; other colours are readable on both."""


SETTINGS: dict[Any, Any] = {
    "font.family": ["DejaVu Sans", "sans-serif"],  # the first comes with matplotlib: the same everywhere
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "axes.labelcolor": INK,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _AXES,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _AXES,
    "ytick.color": _AXES,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "svg.hashsalt": "harness",
    "savefig.dpi": 200,
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and dashes of one method."""

    color: str
    marker: str
    dash: Any


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """A look for each method label; no two share colour and marker.

    A built-in method has the same look in every figure, whichever methods are beside it. A method with options begins
    at the look of the method, another label at one derived from its name, and both take the next one that is free.
    """
    order = built_in_names("methods")

    def place(label: str) -> tuple[bool, bool, str]:
        return label not in order, label.partition("[")[0] not in order, label

    taken = {order.index(label) for label in labels if label in order}
    found: dict[str, Look] = {}
    for label in sorted(labels, key=place):
        name = label.partition("[")[0]
        number = order.index(name) if name in order else zlib.crc32(name.encode()) % len(COLORS)
        if label not in order:  # colours that no other label has come first
            numbers = chain(range(number, len(COLORS)), range(number), count(len(COLORS)))
            number = next(number for number in numbers if number not in taken)
        taken.add(number)
        found[label] = Look(
            COLORS[number % len(COLORS)],
            _MARKERS[number % len(_MARKERS)],
            _DASHES[number % len(_DASHES)],
        )
    return found


@contextmanager
def styled(text: Literal["path", "none"] = "path") -> Iterator[None]:
    """Context in which all figures are drawn and saved. text: SVG holds letters as shapes, or as text."""
    with mpl.rc_context({**SETTINGS, "svg.fonttype": text}):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of `width` × `height` inches, without pyplot's global state."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def add_title(figure: Figure, text: str) -> float:
    """Write a title in as many lines as it needs, at the top left; returns their height in inches."""
    lines = textwrap.wrap(text, int(figure.get_figwidth() / 0.07))
    figure.suptitle(
        "\n".join(lines), fontsize=9, x=0.01, y=1 - 0.06 / figure.get_figheight(), ha="left", va="top"
    )
    return 0.12 + 0.16 * len(lines)


def draw_chance(axis: Axes, chance: float, named: bool = True) -> None:
    """A line at the score of a trivial answer, or a note in the lower right if it is far below all others.

    named: write what it is.
    """
    low, high = axis.get_ylim()
    if chance >= low - 0.5 * (high - low):
        axis.axhline(chance, color=GREY, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        axis.set_ylim(min(low, chance - 0.06 * (high - low)), high)
        text, place, transform = f"chance {chance:.1f}", (0.99, chance), axis.get_yaxis_transform()
    else:
        text, place, transform = f"↓ chance {chance:.1f}", (0.99, 0.01), axis.transAxes
    if named:
        axis.text(*place, text, color=GREY, fontsize=8, ha="right", va="bottom", transform=transform)


def as_bytes(figure: Figure, form: str) -> bytes:
    """The figure as `png` or `svg`. The same figure gives the same bytes with the same matplotlib.

    An SVG is transparent, and on a dark page it has light text and lines.
    """
    if form == "png":
        content = io.BytesIO()
        with styled(), _quiet():
            figure.savefig(content, format="png", metadata={"Software": None})
        return content.getvalue()
    text = as_svg(figure, "path")
    rules = f"<style>@media (prefers-color-scheme: dark) {{{dark_rules()}}}</style>"
    start = text.index(">", text.index("<svg")) + 1
    return f"{text[:start]}\n{rules}{text[start:]}".encode()


def as_svg(figure: Figure, text: Literal["path", "none"]) -> str:
    """The figure as transparent SVG, with letters as shapes or as text."""
    content = io.StringIO()
    with styled(text), _quiet():
        metadata: dict[str, Any] = {"Date": None, "Creator": None}
        figure.savefig(content, format="svg", metadata=metadata, transparent=True)
    return content.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """The font lacks the letters of some languages, in which a label may be; they are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def dark_rules() -> str:
    """CSS that gives the colours of SVG figures their dark counterparts."""
    return "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
