"""Upgrade records of older schemas to the current one.

Schema 1 contained a search's decision in DAS's form (`skipped`, `gates`, `settings`), and the search's history. Schema
2 has separate keys for the parts of a decision that are read, and the history is in a file beside the record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """A record's JSON with the keys of schema 2; other schemas are returned unchanged.

    A search's history is left out: see `old_history`. Parts that do not have the shape of schema 1 are left
    unchanged, so that the validation of the record names them.
    """
    if content.get("schema_version") != 1:
        return content
    upgraded = {**content, "schema_version": 2}
    for part, dropped in (("memory", "peak_inference_mib"), ("training", "macs_per_example")):
        if isinstance(upgraded.get(part), dict):
            upgraded[part] = {key: value for key, value in upgraded[part].items() if key != dropped}
    search = upgraded.get("search")
    if isinstance(search, dict) and isinstance(search.get("decision"), dict):
        upgraded["search"] = _search(search)
    return upgraded


def old_history(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The history of a search in a record of schema 1, with the keys of `SearchHistory`."""
    search = content.get("search")
    if content.get("schema_version") != 1 or not isinstance(search, dict) or not search.get("history"):
        return None
    history, decision = search["history"], search.get("decision", {})
    gates, skipped = decision.get("gates"), decision.get("skipped")
    gated = isinstance(history, list) and all(isinstance(each, dict) and "gates" in each for each in history)
    if not gated or not isinstance(gates, dict) or not isinstance(skipped, list):
        return {"trace": None, "history": history}
    epochs = [update["epoch"] for update in history]
    trace = {
        "arms": list(gates),
        "values": [[0.0] * len(gates), *(update["gates"] for update in history)],
        "chosen": skipped,
        "epoch_starts": [
            [index, epoch + 1]
            for index, epoch in enumerate(epochs)
            if index == 0 or epoch != epochs[index - 1]
        ],
        "outcome": "skipped",
    }
    return {
        "trace": trace,
        "history": [{key: value for key, value in update.items() if key != "gates"} for update in history],
    }


def _search(old: Mapping[str, Any]) -> dict[str, Any]:
    decision = old["decision"]
    skipped, gates, settings = (decision.get(key) for key in ("skipped", "gates", "settings"))
    blocks = isinstance(skipped, list)
    return {
        **{key: value for key, value in old.items() if key != "history"},
        "summary": f"skipped {', '.join(map(str, skipped))}" if blocks else json.dumps(decision),
        "warm_start": isinstance(settings, dict) and settings.get("warm_start") is True,
        "figures": {
            **({"blocks skipped": json.dumps(skipped)} if blocks else {}),
            "decision of the search": _digest(decision),
            "history of the search": _digest(old.get("history")),
        },
        "diagram": {"blocks": list(gates), "skipped": skipped}
        if blocks and isinstance(gates, dict)
        else None,
    }


def _digest(value: Any) -> str:
    """As `harness.digests.digest_json`, but without importing torch."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
