"""Messages from the process that runs a cell to the one that shows its progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.experiment.plan import Cell
from harness.experiment.runner import Reporter
from harness.records.record import Record

_ADVANCE_EVERY = 0.2
"""Seconds between two messages about finished examples."""


class Messenger:
    """A reporter for one cell at a time that sends every call as a message: a kind, then JSON values."""

    def __init__(
        self, send: Callable[[tuple[Any, ...]], None], advance_every: float = _ADVANCE_EVERY
    ) -> None:
        self._send = send
        self._advance_every = advance_every
        self._done = 0
        self._sent = time.monotonic()

    def begin(self, cell: Cell) -> None:
        """The cell starts."""
        self._send(("begin",))

    def stage(self, cell: Cell, name: str, total: int) -> None:
        """A stage begins."""
        self._done = 0
        self._send(("stage", name, total))

    def advance(self, cell: Cell, count: int) -> None:
        """Examples are done; sent a few times per second at most."""
        self._done += count
        if time.monotonic() - self._sent >= self._advance_every:
            self._send(("advance", self._done))
            self._done, self._sent = 0, time.monotonic()

    def epoch(self, cell: Cell, figures: Mapping[str, float]) -> None:
        """An epoch is over."""
        self._send(("epoch", dict(figures)))

    def note(self, text: str) -> None:
        """One line for the user."""
        self._send(("note", text))

    def end(self, cell: Cell, record: Record | None, note: str) -> None:
        """The cell has ended; its record is in the store."""
        self._send(("end", note))


def relay(kind: str, content: Sequence[Any], cell: Cell, reporter: Reporter) -> None:
    """Pass a message about a cell's progress on to a reporter. Other messages are left to the receiver."""
    match kind:
        case "stage":
            reporter.stage(cell, *content)
        case "advance":
            reporter.advance(cell, *content)
        case "epoch":
            reporter.epoch(cell, *content)
        case "note":
            reporter.note(*content)
