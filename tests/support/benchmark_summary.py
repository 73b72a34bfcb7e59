"""One table of runs of the benchmarks: `python -m tests.support.benchmark_summary COMMITTED.json RUN.json …`.

Times are compared with the reference of their own group only, as multiples of it, so that runs on different machines
can stand side by side. `--accept` writes the multiples of these runs into COMMITTED.json; other groups stay.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

HEADERS = ("group", "contestant", "median (ms)", "× reference", "committed", "change (%)", "MACs", "bar", "")

Ratios = Mapping[tuple[str, str], float]
"""Time as a multiple of the reference's, by group and contestant."""


def ratios(run: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """The median over rounds of a contestant's time as a multiple of its group's reference, by group and contestant.

    Rounds are interleaved, so the n-th rounds of two contestants are divided by each other. A contestant with fewer
    rounds than its reference is compared with the first of them.
    """
    times = {
        (each["group"], each["extra_info"]["contestant"]): each["stats"]["data"] for each in run["benchmarks"]
    }
    found = {}
    for each in run["benchmarks"]:
        group, kept = each["group"], each["extra_info"]
        own, reference = times[group, kept["contestant"]], times.get((group, kept["reference"]))
        if reference is not None:
            found[group, kept["contestant"]] = median(a / b for a, b in zip(own, reference, strict=False))
    return found


def rows(run: Mapping[str, Any], committed: Ratios) -> Iterator[tuple[str, ...]]:
    """The lines of the table."""
    now = ratios(run)
    for each in run["benchmarks"]:
        kept = each["extra_info"]
        key = each["group"], kept["contestant"]
        ratio, old, bar = now.get(key), committed.get(key), kept.get("bar")
        verdict = "" if bar is None or ratio is None else "kept" if ratio <= bar else "missed"
        yield (
            *key,
            f"{1000 * each['stats']['median']:.3f}",
            "" if ratio is None else f"{ratio:.3f}",
            "" if old is None else f"{old:.3f}",
            "" if old is None or ratio is None else f"{100 * (ratio / old - 1):+.1f}",
            "" if kept.get("share_of_macs") is None else f"{kept['share_of_macs']:.3f}",
            "" if bar is None else f"{bar:.3f}",
            verdict,
        )


def read_committed(path: Path) -> dict[tuple[str, str], float]:
    """The multiples in a committed file; empty if there is none."""
    if not path.exists():
        return {}
    groups: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    return {(group, name): ratio for group, found in groups.items() for name, ratio in found.items()}


def write_committed(path: Path, found: Ratios) -> None:
    """Write the multiples, in groups."""
    groups: dict[str, dict[str, float]] = {}
    for (group, name), ratio in found.items():
        groups.setdefault(group, {})[name] = round(ratio, 4)
    path.write_text(json.dumps(groups, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of some runs, beside the committed multiples if there are some."""
    parser = argparse.ArgumentParser(description="One table of runs of the benchmarks.")
    parser.add_argument("committed", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--accept", action="store_true", help="write the multiples of these runs")
    chosen = parser.parse_args(arguments)
    committed = read_committed(chosen.committed)
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in chosen.runs]
    lines = [line for run in runs for line in rows(run, committed)]
    print(tabulate(lines, HEADERS, tablefmt="github", disable_numparse=True))
    if chosen.accept:
        for run in runs:
            committed.update(ratios(run))
        write_committed(chosen.committed, committed)


if __name__ == "__main__":
    main()
