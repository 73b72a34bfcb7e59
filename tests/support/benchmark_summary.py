"""One table of a run of the benchmarks: `python -m tests.support.benchmark_summary RUN.json [COMMITTED.json]`.

Times are compared with the reference of their own group only, as multiples of it, so that runs on different machines
can stand side by side.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

HEADERS = ("group", "contestant", "median (ms)", "× reference", "committed", "change (%)", "MACs", "bar", "")


def ratios(run: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """The median over rounds of a contestant's time as a multiple of its group's reference, by group and contestant.

    Rounds are interleaved, so the n-th rounds of two contestants are divided by each other.
    """
    times = {
        (each["group"], each["extra_info"]["contestant"]): each["stats"]["data"] for each in run["benchmarks"]
    }
    found = {}
    for each in run["benchmarks"]:
        group, kept = each["group"], each["extra_info"]
        own, reference = times[group, kept["contestant"]], times.get((group, kept["reference"]))
        if reference is not None:
            found[group, kept["contestant"]] = median(a / b for a, b in zip(own, reference, strict=True))
    return found


def rows(run: Mapping[str, Any], committed: Mapping[str, Any] | None) -> Iterator[tuple[str, ...]]:
    """The lines of the table."""
    now, before = ratios(run), {} if committed is None else ratios(committed)
    for each in run["benchmarks"]:
        kept = each["extra_info"]
        key = each["group"], kept["contestant"]
        ratio, old, bar = now.get(key), before.get(key), kept.get("bar")
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


def main(arguments: list[str]) -> None:
    """Print the table of one run, beside a committed one if there is one."""
    run, *committed = (
        json.loads(Path(name).read_text(encoding="utf-8")) for name in arguments if Path(name).exists()
    )
    print(tabulate(list(rows(run, committed[0] if committed else None)), HEADERS, tablefmt="github"))
    if not committed:
        print("There is no committed run to compare with.")


if __name__ == "__main__":
    main(sys.argv[1:])
