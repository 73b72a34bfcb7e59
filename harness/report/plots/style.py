"""Common style of all figures, and deterministic output.

Colours are those of Okabe & Ito (Color Universal Design, 2008), which people with common forms of colour blindness
can distinguish. Markers and dashes distinguish methods in black and white.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from harness.registry import built_in_names

OKABE_ITO = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Black, blue, vermillion, bluish green, reddish purple, orange, sky blue; yellow is too pale for lines."""


GREY = "#8A8A8A"


_MARKERS = "osD^vPX<>hp*"


_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)), (0, (1, 1)))


SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so figures are the same everywhere
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "svg.hashsalt": "harness",
    "svg.fonttype": "path",
    "savefig.dpi": 200,
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and dashes of one method."""

    color: str
    marker: str
    dash: Any
    hollow: bool
    """True for a hollow marker, which distinguishes it from a method of the same colour."""

    @property
    def face(self) -> str:
        """Fill of the marker."""
        return "white" if self.hollow else self.color


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """A look for each method label. A built-in method without options always has the same one.

    No two labels share colour and marker. The same set of labels gets the same looks in every figure.
    """
    order = built_in_names("methods")
    taken: set[int] = set()
    found: dict[str, Look] = {}
    for label in sorted(labels, key=lambda label: (label not in order, label)):
        number = order.index(label) if label in order else 0
        while number in taken:
            number += 1
        taken.add(number)
        colors, markers = len(OKABE_ITO), len(_MARKERS)
        found[label] = Look(
            OKABE_ITO[number % colors],
            _MARKERS[(number + number // (colors * markers)) % markers],
            _DASHES[(number + number // colors) % len(_DASHES)],
            number // colors % 2 == 1,
        )
    return found


@contextmanager
def styled() -> Iterator[None]:
    """Context in which all figures are drawn and saved."""
    with mpl.rc_context(SETTINGS):  # type: ignore[arg-type]
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of `width` × `height` inches, without pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def as_bytes(figure: Figure, form: str) -> bytes:
    """The figure as `png` or `svg`. The same figure gives the same bytes with the same matplotlib."""
    metadata: dict[str, Any] = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    content = io.BytesIO()
    with styled():
        figure.savefig(content, format=form, metadata=metadata)
    return content.getvalue()
