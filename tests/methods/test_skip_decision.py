"""The decision of a skipping baseline defines how it is stored, printed and compared."""

from __future__ import annotations

import json
from dataclasses import replace

from methods.base import Diagram
from methods.skip_decision import SkipDecision

DECISION = SkipDecision(
    ("joint.1",), ("joint.0", "joint.1"), "influence", ({"joint.0": 0.5, "joint.1": 0.25},)
)


def test_decision_comes_back_from_json() -> None:
    assert SkipDecision.from_json(json.loads(json.dumps(DECISION.to_json()))) == DECISION


def test_summary_and_diagram_name_the_skipped_blocks() -> None:
    assert replace(DECISION, skipped=("joint.0", "joint.1")).summary == "skipped joint.0, joint.1"
    assert DECISION.diagram() == Diagram(("joint.0", "joint.1"), ("joint.1",))


def test_figures_depend_on_every_score() -> None:
    other = replace(DECISION, scores=({"joint.0": 0.5, "joint.1": 0.26},)).figures()
    figures = DECISION.figures()
    assert figures["blocks skipped"] == '["joint.1"]'
    assert [name for name in figures if figures[name] != other[name]] == ["decision of the search"]
