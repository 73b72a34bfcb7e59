"""The blocks that a baseline of block skipping removes, and what it compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from methods.base import Decision, Diagram


@dataclass(frozen=True)
class SkipDecision(Decision):
    """The skipped blocks of a baseline.

    skipped, blocks: names of the skipped blocks and of all blocks, in the order of the model. choice: how the blocks
    were chosen. scores: for each round of the choice, the value of every candidate, of which the lowest were chosen
    (by `alignment`, those with the lowest sum among which neighbours are avoided); empty if nothing was measured.
    """

    skipped: tuple[str, ...]
    blocks: tuple[str, ...]
    choice: str
    scores: tuple[Mapping[str, float], ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return {
            "skipped": list(self.skipped),
            "blocks": list(self.blocks),
            "choice": self.choice,
            "scores": [dict(scores) for scores in self.scores],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The decision that `to_json` stored."""
        scores = tuple(dict(each) for each in content["scores"])
        return cls(tuple(content["skipped"]), tuple(content["blocks"]), content["choice"], scores)

    @property
    def summary(self) -> str:
        """`skipped joint.3, joint.7`."""
        return f"skipped {', '.join(self.skipped)}"

    def figures(self) -> dict[str, str]:
        """The skipped blocks, and a digest of everything."""
        return {"blocks skipped": json.dumps(list(self.skipped)), **super().figures()}

    def diagram(self) -> Diagram:
        """All blocks and the skipped ones."""
        return Diagram(self.blocks, self.skipped)
