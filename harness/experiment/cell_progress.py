"""Interface through which a running cell reports its progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Receives a cell's stages, examples and epochs."""

    def stage(self, name: str, total: int) -> None:
        """A new stage of `total` examples begins."""

    def advance(self, count: int) -> None:
        """`count` more examples are done."""

    def note(self, text: str) -> None:
        """One line to show to the user."""

    def epoch(self, figures: Mapping[str, float]) -> None:
        """An epoch of training is over; a resumed cell reports its earlier epochs again."""
