"""Which blocks each test example ran, in a compressed file beside the record."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from pydantic import Field, ValidationError

from harness.errors import UserError
from harness.files import read_json, write_atomically
from harness.records.record import Part

ROUTES = "routes.json.gz"


class RouteFile(Part):
    """The routes of a cell's test examples."""

    blocks: tuple[str, ...] = Field(description="Names of the model's blocks, in order.")
    examples: dict[str, tuple[str, ...]] = Field(
        description="By id: one text for each forward pass of the example, 1 for a block that ran and 0 for one "
        "that was skipped, in the order of `blocks`."
    )


def write_routes(folder: Path, routes: RouteFile) -> None:
    """Write a cell's routes; equal routes are equal bytes."""
    content = json.dumps(routes.model_dump(mode="json"), ensure_ascii=False)
    write_atomically(folder / ROUTES, gzip.compress(content.encode(), mtime=0))


def read_routes(folder: Path) -> RouteFile | None:
    """A cell's routes; None if its method does not route.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / ROUTES
    if not path.is_file():
        return None
    try:
        return RouteFile.model_validate(read_json(path).value)
    except ValidationError as error:
        raise UserError(f"{path}: cannot be read as routes; run the cell again.") from error
