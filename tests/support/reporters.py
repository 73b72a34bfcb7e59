"""Reporters for runs in tests."""

from __future__ import annotations

from collections.abc import Mapping

from harness.experiment.plan import Cell
from harness.records.record import Record


class Notes:
    """A reporter that records what it is told."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []
        self.stages: list[tuple[str, str]] = []
        self.epochs: list[tuple[str, dict[str, float]]] = []
        self.notes: list[str] = []

    def begin(self, cell: Cell) -> None:
        pass

    def stage(self, cell: Cell, name: str, total: int) -> None:
        self.stages.append((cell.label, name))

    def advance(self, cell: Cell, count: int) -> None:
        pass

    def epoch(self, cell: Cell, figures: Mapping[str, float]) -> None:
        self.epochs.append((cell.label, dict(figures)))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def end(self, cell: Cell, record: Record | None, note: str) -> None:
        self.ended.append((cell.label, note))
