"""Records of schema 1 are read as current ones and lose nothing when they are written again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.digests import digest_json
from harness.records.record_file import RECORD, read_record
from harness.records.search_history import SEARCH
from harness.records.store import Store
from harness.records.upgrade import old_history, upgrade
from methods.bandit import Update
from methods.das_decision import DASDecision
from tests.support.stored_results import as_json

UPDATES = [
    {"epoch": 1, "step": 9, "sets": [["a.0"]], "losses": [1.0], "rewards": [0.0], "gates": [0.5, -0.5]},
    {"epoch": 1, "step": 19, "sets": [["a.1"]], "losses": [2.0], "rewards": [0.0], "gates": [0.8, -0.7]},
    {"epoch": 2, "step": 9, "sets": [["a.0"]], "losses": [1.5], "rewards": [0.0], "gates": [1.2, -0.9]},
]
DECISION = {
    "skipped": ["a.0"],
    "gates": {"a.0": 1.2, "a.1": -0.9},
    "settings": {"skip": 1, "warm_start": True},
}


def old(**changes: Any) -> dict[str, Any]:
    """A record as schema 1 wrote it."""
    content = as_json(
        "das",
        memory={"peak_training_mib": 5.0, "peak_inference_mib": None, "baseline_mib": 1.0, "how": "counted"},
        search={"seconds": 9.0, "share": 0.4, "decision": DECISION, "history": UPDATES, "reward_examples": 7},
        **changes,
    )
    content["training"]["macs_per_example"] = None
    return {**content, "schema_version": 1}


def stored(root: Path, content: dict[str, Any]) -> Store:
    store = Store(root)
    folder = store.folder(content["cell"]["id"])
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps(content))
    return store


def test_upgraded_decision_has_its_summary_and_figures() -> None:
    search = upgrade(old())["search"]
    assert search == {
        "seconds": 9.0,
        "share": 0.4,
        "reward_examples": 7,
        "decision": DECISION,
        "summary": "skipped a.0",
        "warm_start": True,
        "figures": {
            "blocks skipped": '["a.0"]',
            "decision of the search": digest_json(DECISION),
            "history of the search": digest_json(UPDATES),
        },
        "diagram": {"blocks": ["a.0", "a.1"], "skipped": ["a.0"]},
    }


def test_an_old_record_compares_with_its_repetition_figure_by_figure() -> None:
    again = DASDecision(
        ("a.0",),
        DECISION["gates"],
        DECISION["settings"],
        tuple(Update(**update) for update in UPDATES),  # type: ignore[arg-type]
    )
    assert upgrade(old())["search"]["figures"] == again.figures()


def test_current_and_unknown_schemas_are_not_changed() -> None:
    for content in (as_json(), {"schema_version": 0}, {"schema_version": 3}, {}):
        assert upgrade(content) is content
        assert old_history(content) is None


@pytest.mark.parametrize("search", [None, {"seconds": 1.0, "share": 0.1, "decision": {"rank": 4}}])
def test_methods_without_blocks_or_search_are_upgraded_too(tmp_path: Path, search: Any) -> None:
    store = stored(tmp_path, {**old(), "search": search})
    (record,) = store.records()
    if search is None:
        assert record.search is None
    else:
        assert record.search is not None
        assert record.search.summary == '{"rank": 4}'
        assert record.search.diagram is None
        assert not record.search.warm_start
    assert store.search_history(record.cell.id) is None


def test_history_is_read_from_the_old_record_and_kept_when_it_is_replaced(tmp_path: Path) -> None:
    store = stored(tmp_path, old())
    (record,) = store.records()
    history = store.search_history(record.cell.id)
    assert history is not None
    assert history.trace is not None
    assert history.trace.values == ((0, 0), (0.5, -0.5), (0.8, -0.7), (1.2, -0.9))
    assert history.trace.epoch_starts == ((0, 2), (2, 3))
    assert history.trace.chosen == ("a.0",)
    assert history.history == [{k: v for k, v in update.items() if k != "gates"} for update in UPDATES]
    folder = store.commit(record)
    assert json.loads((folder / RECORD).read_text())["schema_version"] == 2
    assert (folder / SEARCH).is_file()
    assert store.search_history(record.cell.id) == history
    assert store.record(record.cell.id) == record


def test_malformed_records_of_schema_1_are_left_to_validation(tmp_path: Path) -> None:
    for broken in ({"search": 5}, {"search": {"decision": 5}}, {"memory": 5}, {"training": None}):
        upgraded = upgrade({**old(), **broken})
        assert {key: upgraded[key] for key in broken} == broken
    assert read_record(stored(tmp_path, old()).folder(old()["cell"]["id"]) / RECORD).memory is not None
