"""Records of older schemas in the keys of today's.

Schema 1 held a search's decision as DAS wrote it (`skipped`, `gates`, `settings`), and its history in the record;
schema 2 has what is read of a decision in keys of its own, and the history in a file beside the record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """A record's JSON with the keys of schema 2; of schema 2 or an unknown one, the same.

    A search's history is left out: see `old_history`. What does not have the shape of schema 1 is left as it is,
    for the check of the record to name.
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
    """The history of a search that stands in a record of schema 1, with the keys of `SearchHistory`."""
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
    """As `harness.digests.digest_json`, which imports torch."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
