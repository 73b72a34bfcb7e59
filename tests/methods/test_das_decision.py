"""DAS's decision defines how it is stored, printed and compared."""

from __future__ import annotations

import json
from dataclasses import replace

from harness.digests import digest_json
from methods.bandit import Update
from methods.base import Diagram
from methods.das_decision import DASDecision

UPDATE = Update(1, 4, [["joint.0"], ["joint.1"]], [1.0, 2.0], [1.0, -1.0], [0.25, 0.75])
DECISION = DASDecision(("joint.1",), {"joint.0": 0.25, "joint.1": 0.75}, {"warm_start": True}, (UPDATE,))


def test_decision_from_json_has_no_history() -> None:
    stored = json.loads(json.dumps(DECISION.to_json()))
    assert stored == {
        "skipped": ["joint.1"],
        "gates": {"joint.0": 0.25, "joint.1": 0.75},
        "settings": {"warm_start": True},
    }
    assert DASDecision.from_json(stored) == replace(DECISION, updates=())
    assert DASDecision.from_json({"skipped": ["joint.1"]}).skipped == ("joint.1",)


def test_summary_and_diagram_name_the_skipped_blocks() -> None:
    assert DECISION.summary == "skipped joint.1"
    assert replace(DECISION, skipped=("joint.1", "joint.9")).summary == "skipped joint.1, joint.9"
    assert DECISION.diagram() == Diagram(("joint.0", "joint.1"), ("joint.1",))


def test_history_and_trace_hold_each_gate_once() -> None:
    assert DECISION.history() == [
        {
            "epoch": 1,
            "step": 4,
            "sets": [["joint.0"], ["joint.1"]],
            "losses": [1.0, 2.0],
            "rewards": [1.0, -1.0],
        }
    ]
    trace = DECISION.trace()
    assert trace is not None
    assert trace.values == ((0, 0), (0.25, 0.75))


def test_figures_depend_on_every_update() -> None:
    figures = DECISION.figures()
    assert figures["blocks skipped"] == '["joint.1"]'
    assert figures["decision of the search"] == digest_json(DECISION.to_json())
    other = replace(DECISION, updates=(replace(UPDATE, losses=[1.0, 2.5]),)).figures()
    assert [name for name in figures if figures[name] != other[name]] == ["history of the search"]
