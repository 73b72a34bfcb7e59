"""An audit of choices: every set's scores, sorted, and where the choosers' sets lie."""

from __future__ import annotations

from math import sqrt

import numpy as np
from matplotlib.figure import Figure

from harness.analysis.choices import Audit
from harness.report.plots.style import GREY, INK, add_title, looks, new_figure, styled


def audit_figure(found: Audit, title: str) -> Figure:
    """Sets from best to worst, a dot for each seed and one for the mean; the choosers' sets have their marker.

    The band is where the means would lie, in 95 % of cases, if all sets were equally good.
    """
    with styled():
        figure = new_figure(7.4, 4.2)
        top = add_title(figure, f"{title}: every set after retraining")
        axis = figure.add_axes((0.09, 0.12, 0.88, 1 - 0.14 - top / 4.2))
        places = np.arange(1, len(found.sets) + 1)
        parts = found.components
        reach = 1.96 * sqrt(parts.within.estimate / parts.seeds)
        axis.axhspan(parts.mean - reach, parts.mean + reach, color=GREY, alpha=0.18, linewidth=0)
        for seed in range(found.scores.shape[1]):
            axis.plot(places, found.scores[:, seed], ".", color=GREY, markersize=3)
        axis.plot(places, found.scores.mean(axis=1), "_", color=INK, markersize=7)
        choosers = [each for each in found.choosers if each.chosen]
        look = looks([each.label for each in choosers])
        for chooser in choosers:
            ranks = sorted({found.sets.index(each) for each in chooser.chosen})
            axis.plot(
                places[ranks],
                found.scores.mean(axis=1)[ranks],
                look[chooser.label].marker,
                color=look[chooser.label].color,
                markersize=6,
                label=chooser.label,
            )
        axis.set_xlabel("Sets, best first")
        axis.set_ylabel("Score")
        axis.legend(loc="lower left", fontsize=7, frameon=False)
    return figure
