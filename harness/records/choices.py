"""The file of learning rates that `harness tune` chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from harness.errors import UserError
from harness.files import read_json


@dataclass(frozen=True)
class Choice:
    """The multiple of a method's default learning rate that is best on a task's validation split.

    method: label. scores: mean validation score over the seeds, by multiple. runs, seconds: number and duration of the
    tuning runs, searches included. tasks: those that it is used on; () if it is this one alone.
    """

    backbone: str
    task: str
    method: str
    scale: float
    scores: Mapping[str, float]
    seeds: tuple[int, ...]
    runs: int
    seconds: float
    tasks: tuple[str, ...] = ()

    @property
    def keys(self) -> set[tuple[str, str, str]]:
        """Backbone, task and method of the results that it is used for."""
        return {(self.backbone, task, self.method) for task in self.tasks or (self.task,)}


def read_choices(path: Path) -> list[Choice]:
    """The choices in a file; [] if there is none.

    Raises:
        UserError: the file is not what was written.
    """
    if not path.is_file():
        return []
    try:
        return TypeAdapter(list[Choice]).validate_python(read_json(path).value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {key}: {first['msg']}; delete it and run `harness tune` again.") from None
