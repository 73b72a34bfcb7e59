"""The protocol: everything that must agree for two results to be comparable."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.errors import UserError
from harness.records.record import Compute, Record
from harness.registry import built_in_names


def check_protocol(records: Sequence[Record], remedy: str = "Use --all-protocols for a table each.") -> None:
    """Check that the records of each task are comparable.

    remedy: end of the message, which says what to do.

    Raises:
        UserError: names the field that differs, its values, and a cell for each.
    """
    for of_task in by_task(records).values():
        for field in _varying(of_task):
            holders: dict[str, list[Record]] = {}
            for record in of_task:
                if (value := protocol_of(record).get(field)) is not None or field not in _MEASURED:
                    holders.setdefault(value or "not stated", []).append(record)
            cells = "; ".join(f"{value} ({_list_cells(group)})" for value, group in holders.items())
            raise UserError(
                f"{of_task[0].cell.task.name} on {of_task[0].cell.backbone.name}: these cells are not "
                f"comparable, {field} differs: {cells}. {remedy}"
            )


_UNSTATED: Mapping[str, Any] = {
    "betas": [0.9, 0.98],
    "eps": 1e-8,
    "cache_precision": "full",
    "budget": "epochs",
}
"""Values of these fields in records that were written before the fields existed."""


def stated_protocol(record: Record) -> dict[str, Any]:
    """The record's protocol, completed by the values of fields that did not exist when it was written."""
    return {**_UNSTATED, **record.protocol}


_MEASURED = ("measured image size", "measured text length")
"""Fields of the protocol that exist only in cells with this measurement."""


def protocol_of(record: Record) -> dict[str, str]:
    """Everything that must agree, as JSON by field."""
    cell = record.cell
    fields: dict[str, Any] = {
        **stated_protocol(record),
        "backbone digest": cell.backbone.digest,
        "backbone configuration": cell.backbone.config,
        "task version": cell.task.version,
        "task options": cell.task.options,
        "embedded data": record.data.benchmark == "mini",
        "data digest": record.data.digest,
        "reported split": record.reported_split,
    }
    if isinstance(record.compute, Compute):
        measured = (list(record.compute.image_size), record.compute.text_length)
        fields |= dict(zip(_MEASURED, measured, strict=True))
    return {key: json.dumps(value, sort_keys=True, ensure_ascii=False) for key, value in fields.items()}


def _varying(records: Sequence[Record]) -> list[str]:
    protocols = [protocol_of(record) for record in records]
    fields = dict.fromkeys(field for protocol in protocols for field in protocol)
    varying = []
    for field in fields:
        having = [protocol for protocol in protocols if field in protocol or field not in _MEASURED]
        if len({protocol.get(field) for protocol in having}) > 1:
            varying.append(field)
    return varying


def by_protocol(records: Sequence[Record]) -> Iterable[tuple[str, list[Record]]]:
    """Groups of comparable records, each with what distinguishes it from the task's other groups."""
    for of_task in by_task(records).values():
        varying = _varying(of_task)
        groups: dict[tuple[str | None, ...], list[Record]] = {}
        for record in of_task:
            protocol = protocol_of(record)
            groups.setdefault(tuple(protocol.get(field) for field in varying), []).append(record)
        for values, group in groups.items():
            parts = [
                _distinction(field, value, alternatives)
                for field, value, alternatives in zip(varying, values, zip(*groups, strict=True), strict=True)
            ]
            yield ", ".join(dict.fromkeys(parts)), group


def _distinction(field: str, value: str | None, alternatives: Sequence[str | None]) -> str:
    """A field of the protocol as a table's title shows it; of options only those that differ.

    alternatives: the values of all groups, including this one.
    """
    own, *every = (json.loads(text or "null") for text in (value, *alternatives))
    if not all(isinstance(each, dict) for each in every):
        return f"{field} {_shorten(value or 'not stated')}"
    keys = dict.fromkeys(key for each in every for key in each)
    different = [key for key in keys if len({json.dumps(each.get(key)) for each in every}) > 1]
    return ", ".join(f"{key} {_shorten(str(own.get(key, 'not stated')))}" for key in different)


def by_task(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by task: built-in tasks in the order of the papers, then others in order of appearance."""
    groups: dict[str, list[Record]] = {name: [] for name in built_in_names("tasks")}
    for record in records:
        groups.setdefault(record.cell.task.name, []).append(record)
    return {name: group for name, group in groups.items() if group}


def _shorten(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:20]}…"


def _list_cells(records: Sequence[Record]) -> str:
    words = [f"{r.cell.method.label} seed {r.cell.seed}, cell {r.cell.id[:10]}" for r in records[:2]]
    return "; ".join([*words, *([f"and {len(records) - 2} more"] if len(records) > 2 else [])])


def newest(records: Iterable[Record]) -> list[Record]:
    """The newest of several records of the same cell, which have different ids after changes of code."""
    latest: dict[tuple[str, str, int], Record] = {}
    for record in sorted(records, key=lambda r: r.timestamps.finished):
        latest[record.cell.task.name, record.cell.method.label, record.cell.seed] = record
    return list(latest.values())
