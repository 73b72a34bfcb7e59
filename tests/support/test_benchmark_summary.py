from __future__ import annotations

from typing import Any

from tests.support.benchmark_summary import ratios, rows


def entry(contestant: str, *seconds: float, **kept: Any) -> dict[str, Any]:
    info = {"contestant": contestant, "reference": "base", **kept}
    middle = sorted(seconds)[len(seconds) // 2]
    return {"group": "g", "extra_info": info, "stats": {"data": list(seconds), "median": middle}}


def test_ratio_is_the_median_over_rounds() -> None:
    run = {"benchmarks": [entry("base", 1.0, 2.0, 4.0), entry("ours", 2.0, 3.0, 4.0)]}
    assert ratios(run) == {("g", "base"): 1.0, ("g", "ours"): 1.5}


def test_runs_are_compared_by_ratios_whatever_the_machine() -> None:
    slow = {"benchmarks": [entry("base", 10.0), entry("ours", 9.0, bar=0.8, share_of_macs=0.7)]}
    fast = {"benchmarks": [entry("base", 1.0), entry("ours", 0.75)]}
    base, ours = rows(slow, fast)
    assert base[3:] == ("1.000", "1.000", "+0.0", "", "", "")
    assert ours == ("g", "ours", "9000.000", "0.900", "0.750", "+20.0", "0.700", "0.800", "missed")


def test_contestant_without_its_reference_has_no_ratio() -> None:
    (alone,) = rows({"benchmarks": [entry("ours", 1.0, bar=1.0)]}, None)
    assert alone[3:] == ("", "", "", "", "1.000", "")
