"""What all sentences of the embedded world share: several wordings of one thing that is said."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from tasks.mini.world import pick


@dataclass(frozen=True)
class Sentence(ABC):
    """Something that can be said in several ways."""

    @property
    def kind(self) -> str:
        """Of its construction."""
        return type(self).__name__

    @abstractmethod
    def wordings(self) -> list[str]:
        """Every way to say it."""

    def text(self, rng: np.random.Generator) -> str:
        """One of them."""
        return pick(self.wordings(), rng).replace("a orange", "an orange")
