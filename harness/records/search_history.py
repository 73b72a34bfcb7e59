"""The history of a search, in a compressed file beside the record."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from pydantic import Field, JsonValue, model_validator

from harness.errors import UserError
from harness.files import read_json, write_atomically
from harness.records.record import Part
from harness.records.record_file import RECORD
from harness.records.upgrade import old_history

SEARCH = "search.json.gz"


class SearchTrace(Part):
    """The value of each arm of a search after every update."""

    arms: tuple[str, ...] = Field(description="Names of what the search chooses among.")
    values: tuple[tuple[float, ...], ...] = Field(
        description="One row before the first update and one after each, one value per arm; high values are chosen."
    )
    chosen: tuple[str, ...] = Field(description="Names of the chosen arms.")
    epoch_starts: tuple[tuple[int, int], ...] = Field(
        description="Index of the first update of each epoch, from 0, and the epoch's number, from 1."
    )
    outcome: str = Field(description="What is done with a chosen arm, such as skipped.")

    @model_validator(mode="after")
    def _fits(self) -> SearchTrace:
        if not self.values or any(len(row) != len(self.arms) for row in self.values):
            raise ValueError(f"every row of values needs {len(self.arms)} entries")
        return self


class SearchHistory(Part):
    """The history of a search, without its decision."""

    trace: SearchTrace | None = Field(default=None, description="None: the search has no trace.")
    history: JsonValue = Field(default=None, description="In the method's own form.")


def write_history(folder: Path, history: SearchHistory) -> None:
    """Write a cell's search history; equal histories are equal bytes."""
    content = json.dumps(history.model_dump(mode="json"), ensure_ascii=False, allow_nan=False)
    # No time in the header.
    write_atomically(folder / SEARCH, gzip.compress(content.encode(), mtime=0))


def read_history(folder: Path) -> SearchHistory | None:
    """A cell's search history, from its file or from a record of schema 1; None if there is none.

    Raises:
        UserError: the file is not a search history.
    """
    path = folder / SEARCH
    source = path if path.is_file() else folder / RECORD
    if not source.is_file():
        return None
    content = read_json(source).value
    try:
        if source == path:
            return SearchHistory.model_validate(content)
        old = old_history(content) if isinstance(content, dict) else None
        return None if old is None else SearchHistory.model_validate(old)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source}: cannot be read as a search's history; run the cell again.") from error
