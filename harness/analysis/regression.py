"""Compare results with a baseline, figure by figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from harness.analysis.baseline import Baseline, BaselineCell
from harness.errors import counted, escaped
from harness.files import write_atomically

Verdict = Literal["same", "better", "worse", "changed", "missing", "new"]


FAILING: tuple[Verdict, ...] = ("worse", "changed", "missing")
"""Verdicts that make a check fail. changed: a figure that must agree exactly differs without being worse."""


LATENCY_TOLERANCE = 0.10
"""Fraction by which a latency ratio may exceed the baseline's interval. Rounds within a process vary less than
processes do, so the interval alone is too narrow between runs."""


_EXACT = (
    ("parameters", "parameters"),
    ("updated_parameters", "updated parameters"),
    ("deployed_parameters", "deployed parameters"),
    ("macs", "FLOPs (MACs)"),
    ("tuned_file_bytes", "tuned file (bytes)"),
)


@dataclass(frozen=True)
class Finding:
    """Verdict on one figure of a cell, or on the whole cell (figure "cell")."""

    cell: BaselineCell
    figure: str
    verdict: Verdict
    text: str

    @property
    def fails(self) -> bool:
        """Whether the check fails because of it."""
        return self.verdict in FAILING


def check(
    baseline: Baseline,
    cells: Sequence[BaselineCell],
    failures: dict[tuple[str, str, str, int], str] | None = None,
    latency_tolerance: float = LATENCY_TOLERANCE,
) -> list[Finding]:
    """Findings for every figure of the baseline's cells, then for cells that the baseline lacks.

    failures: why a cell has no result, by `BaselineCell.key`.
    Parameters, FLOPs and file sizes must agree exactly. A score is worse or better if it lies outside the
    baseline's interval. A latency ratio is worse if its whole interval lies above the baseline's by more than the
    tolerance, and better if it lies below by as much.
    """
    now = {cell.key: cell for cell in cells}
    found: list[Finding] = []
    for before in baseline.cells:
        after = now.pop(before.key, None)
        if after is None:
            reason = (failures or {}).get(before.key)
            text = "is not among the results" if reason is None else f"failed: {reason}"
            found.append(Finding(before, "cell", "missing", text))
        else:
            found += _check_cell(before, after, latency_tolerance)
    found += [Finding(cell, "cell", "new", "is not in the baseline") for cell in now.values()]
    return found


def _check_cell(before: BaselineCell, after: BaselineCell, tolerance: float) -> list[Finding]:
    found = [_exact(before, after, key, name) for key, name in _EXACT]
    if (before.protocol, before.metric) != (after.protocol, after.metric):
        text = "was run with another protocol than the baseline (data, epochs, backbone, …)"
        return [Finding(before, before.metric, "changed", f"{text}: the scores cannot be compared"), *found]
    return [_score(before, after), *found, _latency(before, after, tolerance)]


def _score(before: BaselineCell, after: BaselineCell) -> Finding:
    verdict: Verdict = "same"
    if not before.low <= after.score <= before.high:
        verdict = "better" if (after.score > before.high) == before.higher_is_better else "worse"
    text = (
        f"{after.score:.2f}, was {before.score:.2f} ({after.score - before.score:+.2f} points; "
        f"interval {before.low:.2f} to {before.high:.2f})"
    )
    return Finding(before, before.metric, verdict, text)


def _exact(before: BaselineCell, after: BaselineCell, key: str, name: str) -> Finding:
    old, new = getattr(before, key), getattr(after, key)
    if old == new:
        return Finding(before, name, "same", _count(new))
    if old is None or new is None:
        verdict: Verdict = "changed" if old is None else "worse"
        return Finding(before, name, verdict, f"{_count(new)}, was {_count(old)}")
    share = f", {100 * (new - old) / old:+.2f} %" if old else ""
    text = f"{_count(new)}, was {_count(old)} ({new - old:+,}{share})"
    return Finding(before, name, "worse" if new > old else "changed", text)


def _latency(before: BaselineCell, after: BaselineCell, tolerance: float) -> Finding:
    name, old, new = "latency ratio", before.latency_ratio, after.latency_ratio
    if old is None or new is None:
        if old is None and new is None:
            return Finding(before, name, "same", "not measured")
        verdict: Verdict = "new" if old is None else "worse"
        return Finding(before, name, verdict, "not measured before" if old is None else "no longer measured")
    verdict = "same"
    if new.low > old.high * (1 + tolerance):
        verdict = "worse"
    elif new.high < old.low / (1 + tolerance):
        verdict = "better"
    text = (
        f"{new.ratio:.3f} [{new.low:.3f}, {new.high:.3f}] of the untouched backbone's, was {old.ratio:.3f} "
        f"[{old.low:.3f}, {old.high:.3f}] ({100 * (new.ratio / old.ratio - 1):+.1f} %)"
    )
    return Finding(before, name, verdict, text)


def _count(value: int | None) -> str:
    return "not measured" if value is None else f"{value:,}"


_HEADINGS: dict[Verdict, str] = {
    "worse": "Worse",
    "changed": "Changed (must agree exactly)",
    "missing": "Missing",
    "better": "Better",
    "new": "New",
}


def describe(findings: Sequence[Finding]) -> str:
    """Readable list of all differences, with the counts in the last line."""
    lines: list[str] = []
    for verdict, heading in _HEADINGS.items():
        chosen = [each for each in findings if each.verdict == verdict]
        if chosen:
            lines.append(f"{heading}:")
            for each in chosen:
                what = "" if each.figure == "cell" else f" {each.figure}"
                lines.append(f"  {each.cell.name}:{what} {each.text}")
    failed = sum(each.fails for each in findings)
    cells = len({each.cell.key for each in findings if each.verdict != "new"})
    summary = (
        "nothing got worse"
        if not failed
        else f"{counted(failed, 'figure')} to fix, or to accept with --update"
    )
    compared = f"{counted(cells, 'cell')} of the baseline, {counted(len(findings), 'figure')}"
    return "\n".join([*lines, f"{compared}: {summary}."])


def write_junit(findings: Sequence[Finding], path: Path) -> None:
    """Write JUnit XML: one test suite per task and backbone, one test case per figure.

    Raises:
        UserError: the folder cannot be written.
    """
    root = ElementTree.Element("testsuites", name="harness check")
    suites: dict[str, list[Finding]] = {}
    for each in findings:
        suites.setdefault(f"{each.cell.backbone}.{each.cell.task}", []).append(each)
    for name, own in suites.items():
        failures = sum(each.fails for each in own)
        suite = ElementTree.SubElement(
            root, "testsuite", name=name, tests=str(len(own)), failures=str(failures), errors="0", skipped="0"
        )
        for each in own:
            case = ElementTree.SubElement(
                suite,
                "testcase",
                classname=f"{name}.{each.cell.method}",
                name=f"{each.figure}, seed {each.cell.seed}",
            )
            if each.fails:
                message = escaped(f"{each.cell.name}: {each.figure} {each.text}")
                failure = ElementTree.SubElement(case, "failure", message=message, type=each.verdict)
                failure.text = message
            elif each.verdict != "same":
                ElementTree.SubElement(case, "system-out").text = f"{each.verdict}: {each.text}"
    ElementTree.indent(root)
    write_atomically(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")
