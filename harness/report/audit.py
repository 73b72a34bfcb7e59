"""An audit as text, as CSV and as a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from math import sqrt
from pathlib import Path

from tabulate import tabulate

from harness.analysis.choices import Audit, Set, seeds_needed, verdict
from harness.analysis.stats import Interval
from harness.files import write_atomically
from harness.report.plots.audit import audit_figure
from harness.report.plots.style import as_bytes


def write_audit(found: Audit, title: str, results: Path, name: str) -> tuple[str, list[Path]]:
    """Write `tables/NAME.md`, `tables/NAME.csv` and `plots/NAME.{png,svg}`; returns the text and the paths."""
    text = "\n".join(describe_audit(found, title)) + "\n"
    figure = audit_figure(found, title)
    contents = {
        results / "tables" / f"{name}.md": text.encode(),
        results / "tables" / f"{name}.csv": _sets_as_csv(found).encode(),
        **{results / "plots" / f"{name}.{form}": as_bytes(figure, form) for form in ("png", "svg")},
    }
    return text, [write_atomically(path, content) for path, content in contents.items()]


def describe_audit(found: Audit, title: str) -> Iterator[str]:
    """The audit as Markdown."""
    parts = found.components
    yield f"# Audit: {title}"
    yield ""
    yield verdict(found)
    yield ""
    beside = len(found.sets) - len(found.drawn)
    more = f"; {beside} more sets were trained because they were chosen" if beside else ""
    yield (
        f"Estimated from {parts.groups} sets, each trained with {parts.seeds} seeds{more}. Mean score "
        f"{parts.mean:.2f}. F test that the sets do not differ: {_p_value(parts.p_value)}."
    )
    yield ""
    rows = [
        ["variance between sets", f"{parts.between.estimate:.2f}", _bounds(parts.between)],
        ["variance between retrainings of one set", f"{parts.within.estimate:.2f}", _bounds(parts.within)],
        ["standard deviation between retrainings", f"{sqrt(parts.within.estimate):.2f}", ""],
        [
            "variance of what a seed does to all sets alike",
            f"{parts.shared.estimate:.2f}",
            _bounds(parts.shared),
        ],
    ]
    yield tabulate(rows, ["points²; points", "estimate", "95 % interval"], "github", disable_numparse=True)
    yield ""
    rows = [
        [
            each.label,
            _sets(each.chosen),
            f"{each.score:.2f}",
            "" if each.rank is None else f"{each.rank:.1f}",
            _signed(each.gain),
            "" if each.regret is None else _signed(each.regret),
        ]
        for each in found.choosers
    ]
    headers = ["choice", "sets chosen", "score", f"mean rank of {len(found.sets)}"]
    headers += ["gain over an average set", "regret against the oracle"]
    yield tabulate(rows, headers, "github", disable_numparse=True)
    yield ""
    yield (
        "Scores are those of the chosen sets, retrained with every seed, in points. The oracle takes, for each seed, "
        "the set that is best with the other seeds. Intervals (95 %) cover the noise between retrainings, not which "
        "sets were drawn. All sets are trained with the same seeds; what a seed does to all of them alike cancels in "
        "comparisons and is not part of the noise."
    )
    yield ""
    yield from _describe_effects(found)
    for difference, seeds in seeds_needed(found).items():
        yield (
            f"A difference of {difference:.1f} points between two sets is found in 80 % of experiments with {seeds} "
            "seeds for each."
        )


def _describe_effects(found: Audit) -> Iterator[str]:
    """What skipping each part changes, if that was estimated."""
    if found.effects is None:
        return
    yield (
        f"What a set's mean score gains or loses by skipping a part, instead of an average one. Least squares on the "
        f"{len(found.drawn)} sets above; it explains {found.effects.explained:.0%} of the variance between their means."
    )
    yield ""
    rows = [[part, _signed(effect)] for part, effect in found.effects.parts.items()]
    if found.effects.neighbours is not None:
        rows.append(["one more pair of skipped neighbours", _signed(found.effects.neighbours)])
    yield tabulate(rows, ["skipped", "points (95 % interval)"], "github", disable_numparse=True)
    yield ""


def _sets_as_csv(found: Audit) -> str:
    """One row per set, best first: its parts, whether it stands for all sets, its mean and its scores."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    seeds = found.scores.shape[1]
    writer.writerow(["rank", "skipped", "drawn", "mean", *(f"score_{i}" for i in range(seeds))])
    drawn = set(found.drawn)
    for rank, (each, scores) in enumerate(zip(found.sets, found.scores, strict=True), start=1):
        values = [f"{value:.4f}" for value in (scores.mean(), *scores)]
        writer.writerow([rank, "+".join(each), "yes" if each in drawn else "no", *values])
    return text.getvalue()


def _sets(chosen: tuple[Set, ...]) -> str:
    counts = {each: chosen.count(each) for each in dict.fromkeys(chosen)}
    return ", ".join("+".join(each) + (f" ({n}×)" if n > 1 else "") for each, n in counts.items())


def _p_value(value: float) -> str:
    """It comes from random draws, of which none may be so far out."""
    return f"p = {value:.2g}" if value >= 1e-5 else "p < 0.00001"


def _bounds(interval: Interval) -> str:
    return f"{interval.low:.2f} to {interval.high:.2f}"


def _signed(interval: Interval) -> str:
    return f"{interval.estimate:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"
