"""Base class of all generated sentences: one statement with several wordings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from tasks.mini.world import pick


@dataclass(frozen=True)
class Sentence(ABC):
    """A statement that can be worded in several ways."""

    @property
    def kind(self) -> str:
        """Name of its construction."""
        return type(self).__name__

    @abstractmethod
    def wordings(self) -> list[str]:
        """All wordings of the statement."""

    def text(self, rng: np.random.Generator) -> str:
        """A random wording."""
        return pick(self.wordings(), rng).replace("a orange", "an orange")
