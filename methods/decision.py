"""What a search has decided: how it is stored, printed, drawn and compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from harness.digests import digest_json


@dataclass(frozen=True)
class Trace:
    """The course of a search, which `harness plot` draws.

    arms: names of the N options that the search chooses among. values: `(U + 1, N)`, one value per arm, before the
    first of U updates and after each of them; arms with high values are chosen. chosen: names of the arms chosen
    in the end. epoch_starts: for each epoch, its first update (from 0) and its number (from 1).
    outcome: what happens to a chosen arm, for the figure's text.
    """

    arms: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    chosen: tuple[str, ...]
    epoch_starts: tuple[tuple[int, int], ...] = ()
    outcome: str = "chosen"


@dataclass(frozen=True)
class Diagram:
    """Names of the model's blocks in order, and of the skipped ones; the report draws them."""

    blocks: tuple[str, ...]
    skipped: tuple[str, ...]


class Decision(ABC):
    """The result of a search: a frozen dataclass that defines how it is stored, printed and compared."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The decision as a short JSON value for the record, without the history; `from_json` reads it."""

    @classmethod
    @abstractmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The decision from what `to_json` returned. Its history is missing; `Method.decide` does not need it."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """One line for progress and tables: `skipped joint.3, joint.7`."""

    def figures(self) -> dict[str, str]:
        """Name → text of everything that must be equal when a cell is reproduced."""
        return {"decision of the search": digest_json(self.to_json())}

    def history(self) -> Any:
        """The course of the search as a JSON value of any length, saved in a compressed file beside the record."""
        return None

    def trace(self) -> Trace | None:
        """The trace that `harness plot` draws; None: no figure."""
        return None

    def diagram(self) -> Diagram | None:
        """The blocks with the skipped ones; None if the decision skips no blocks."""
        return None
