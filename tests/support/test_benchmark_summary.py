from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.benchmark_summary import main, ratios, read_committed, rows


def entry(contestant: str, *seconds: float, **kept: Any) -> dict[str, Any]:
    info = {"contestant": contestant, "reference": "base", **kept}
    middle = sorted(seconds)[len(seconds) // 2]
    return {"group": "g", "extra_info": info, "stats": {"data": list(seconds), "median": middle}}


def test_ratio_is_the_median_over_rounds() -> None:
    run = {"benchmarks": [entry("base", 1.0, 2.0, 4.0), entry("ours", 2.0, 3.0, 4.0)]}
    assert ratios(run) == {("g", "base"): 1.0, ("g", "ours"): 1.5}


def test_runs_are_compared_by_ratios_whatever_the_machine() -> None:
    slow = {"benchmarks": [entry("base", 10.0), entry("ours", 9.0, bar=0.8, share_of_macs=0.7)]}
    fast = ratios({"benchmarks": [entry("base", 1.0), entry("ours", 0.75)]})
    base, ours = rows(slow, fast)
    assert base[3:] == ("1.000", "1.000", "+0.0", "", "", "")
    assert ours == ("g", "ours", "9000.000", "0.900", "0.750", "+20.0", "0.700", "0.800", "missed")


def test_contestant_without_its_reference_has_no_ratio() -> None:
    (alone,) = rows({"benchmarks": [entry("ours", 1.0, bar=1.0)]}, {})
    assert alone[3:] == ("", "", "", "", "1.000", "")


def test_accepted_multiples_stand_beside_the_next_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    committed, run = tmp_path / "committed.json", tmp_path / "run.json"
    committed.write_text('{"another group": {"base": 1.0}}')
    run.write_text(json.dumps({"benchmarks": [entry("base", 2.0), entry("ours", 1.0)]}))
    main([str(committed), str(run), "--accept"])
    assert read_committed(committed) == {
        ("another group", "base"): 1.0,
        ("g", "base"): 1.0,
        ("g", "ours"): 0.5,
    }
    run.write_text(json.dumps({"benchmarks": [entry("base", 2.0), entry("ours", 1.5)]}))
    capsys.readouterr()
    main([str(committed), str(run)])
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")]
    assert cells[1:7] == ["g", "ours", "1500.000", "0.750", "0.500", "+50.0"]


def test_contestant_with_fewer_rounds_is_compared_with_the_first_ones() -> None:
    assert ratios({"benchmarks": [entry("base", 1.0, 9.0, 9.0), entry("ours", 2.0)]})["g", "ours"] == 2.0
