"""Interface through which a running cell reports its progress."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from harness.files import write_atomically

DONE = "done.json"
"""File beside a cell's checkpoints: the stage that was saved last, and which share of its examples was seen."""


def keep_done(scratch: Path, stage: str, share: float) -> None:
    """Note beside a checkpoint how far it has come, for estimates of the time that is left."""
    write_atomically(scratch / DONE, json.dumps({"stage": stage, "share": share}).encode())


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
