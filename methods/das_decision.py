"""The result of a search with DAS's bandit: what is skipped, the gates, and their history."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from harness.digests import digest_json
from methods.bandit import Update, trace_gates
from methods.base import Decision, Diagram, Trace


@dataclass(frozen=True)
class DASDecision(Decision):
    """The blocks that are removed from the model (DAS), or the attention modules (EAS).

    skipped: their names. gates: the final gate of every block or module, by name, in the order of the model.
    settings: settings of the search, defaults resolved. updates: updates of the gates; empty in a decision from a
    record.
    """

    skipped: tuple[str, ...]
    gates: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    updates: tuple[Update, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Blocks, gates and settings."""
        return {"skipped": list(self.skipped), "gates": dict(self.gates), "settings": dict(self.settings)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The decision without its updates."""
        return cls(
            tuple(content["skipped"]), dict(content.get("gates", {})), dict(content.get("settings", {}))
        )

    @property
    def summary(self) -> str:
        """`skipped joint.3, joint.7`."""
        return f"skipped {', '.join(self.skipped)}"

    def figures(self) -> dict[str, str]:
        """The blocks, and digests of the gates and of every update."""
        return {
            "blocks skipped": json.dumps(list(self.skipped)),
            **super().figures(),
            "history of the search": digest_json([asdict(update) for update in self.updates]),
        }

    def history(self) -> list[dict[str, Any]]:
        """Every update without its gates, which are in the trace."""
        return [
            {key: value for key, value in asdict(update).items() if key != "gates"} for update in self.updates
        ]

    def trace(self) -> Trace | None:
        """The gates over the search."""
        return trace_gates(tuple(self.gates), self.updates, self.skipped, "skipped")

    def diagram(self) -> Diagram:
        """All blocks and the skipped ones."""
        return Diagram(tuple(self.gates), self.skipped)
