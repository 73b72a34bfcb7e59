"""Scores of a long evaluation, saved while it runs, so that an interrupted evaluation resumes."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from harness.errors import UserError

SAVE_EVERY = 30.0  # seconds


@dataclass
class PartialScores:
    """A file with the finished rows of a score matrix.

    path: the file; it need not exist. It is replaced as a whole, so it is never half written.
    key: digest of the model. Rows of another model or of other pairs are ignored.
    save_every: least number of seconds between two saves.
    """

    path: Path
    key: str
    save_every: float = SAVE_EVERY
    _saved: float = field(default_factory=time.monotonic)

    def load(self, pairs: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Scores `shape` float32, and which rows are done `(rows,)` bool. pairs: digest of the pairs to score."""
        nothing = np.empty(shape, dtype=np.float32), np.zeros(shape[0], dtype=bool)
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                if str(saved["key"]) != self._key(pairs):
                    return nothing
                scores, done = saved["scores"], saved["done"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return nothing
        return (scores, done) if scores.shape == shape and done.shape == shape[:1] else nothing

    def save(self, pairs: str, scores: np.ndarray, done: np.ndarray) -> None:
        """Save the finished rows, unless the last save was less than `save_every` seconds ago.

        Raises:
            UserError: the folder cannot be written or the disk is full.
        """
        if time.monotonic() - self._saved < self.save_every:
            return
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.savez(file, key=np.array(self._key(pairs)), scores=scores, done=done)
            partial.replace(self.path)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}.") from error
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Delete the file: all rows are done."""
        self.path.unlink(missing_ok=True)

    def _key(self, pairs: str) -> str:
        return hashlib.sha256(f"{self.key} {pairs}".encode()).hexdigest()
