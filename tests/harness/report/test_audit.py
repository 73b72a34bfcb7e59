"""An audit as text, CSV and plot."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from harness.analysis.choices import audit
from harness.report.audit import write_audit

A, B, C = ("joint.0", "joint.1"), ("joint.0", "joint.2"), ("joint.1", "joint.2")
SCORES = {A: [1.0, 3.0], B: [4.0, 6.0], C: [9.0, 7.0]}


def test_audit_is_written_in_all_forms(tmp_path: Path) -> None:
    found = audit(SCORES, [A, B, C], {"das": [C, C], "skip[choice=last]": [C, B]})
    text, paths = write_audit(found, "das on vqa", tmp_path, "audit")
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "tables/audit.md",
        "tables/audit.csv",
        "plots/audit.png",
        "plots/audit.svg",
    ]
    lines = paths[0].read_text().splitlines()
    assert text.splitlines() == lines
    assert lines[0] == "# Audit: das on vqa"
    das = next(line for line in lines if line.startswith("| das "))
    assert [cell.strip() for cell in das.split("|")][2:5] == ["joint.1+joint.2 (2×)", "8.00", "1.0"]
    assert any(line.startswith("A difference of 1.0 points between two sets") for line in lines)
    assert paths[1].read_text().splitlines() == [
        "rank,skipped,drawn,mean,score_0,score_1",
        "1,joint.1+joint.2,yes,8.0000,9.0000,7.0000",
        "2,joint.0+joint.2,yes,5.0000,4.0000,6.0000",
        "3,joint.0+joint.1,yes,2.0000,1.0000,3.0000",
    ]
    assert paths[3].read_text().startswith("<?xml")


def test_effects_of_skipped_parts_are_listed(tmp_path: Path) -> None:
    parts = [f"joint.{i}" for i in range(5)]
    pairs = list(combinations(parts, 2))
    # joint.4 costs two points more than the others do.
    scores = {each: [50.0 - 2 * ("joint.4" in each), 52.0 - 2 * ("joint.4" in each)] for each in pairs}
    lines = write_audit(
        audit(scores, pairs, {"das": pairs[:2]}, parts=parts), "das on vqa", tmp_path, "audit"
    )[0].splitlines()
    rows = {cells[1].strip(): cells[2].strip() for line in lines if len(cells := line.split("|")) == 4}
    assert rows["joint.4"] == "-1.60 (-1.60 to -1.60)"
    assert rows["joint.0"] == "+0.40 (+0.40 to +0.40)"
    assert rows["one more pair of skipped neighbours"].endswith("0.00 (-0.00 to +0.00)")
    assert any("explains 100%" in line for line in lines)
    assert any("the sets do not differ: p < 0.00001." in line for line in lines)
