"""The file of a record: read strictly, written atomically."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from harness.errors import UserError, one_line
from harness.files import read_json, write_atomically
from harness.records.record import SCHEMA_VERSION, Record
from harness.records.upgrade import upgrade

RECORD = "record.json"
"""In a cell's folder."""


def read_record(path: Path) -> Record:
    """Read one record; older schemas are upgraded where possible.

    Raises:
        UserError: names the file and the invalid key.
    """
    content = read_json(path).value
    if isinstance(content, dict):
        try:
            content = upgrade(content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a record of schema 1: {one_line(error)}.") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        age = "an older" if version < SCHEMA_VERSION else "a newer"
        older = f"delete or move away {path.parent}, then run the cell again"
        remedy = older if version < SCHEMA_VERSION else "update the harness"
        raise UserError(
            f"{path}: schema_version {version} is of {age} harness, "
            f"this one reads {SCHEMA_VERSION}; {remedy}."
        )
    try:
        return Record.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error)}.") from error


def write_record(folder: Path, record: Record) -> Path:
    """Write `record.json` atomically; it is the last file of a cell to be written.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    content = json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    return write_atomically(folder / RECORD, f"{content}\n".encode())


def _explain(error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"]) or "the record"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{key}: {first['msg'].removeprefix('Value error, ')}{more}"
