"""What a method has that wants its search's training kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from harness.backbones.base import Backbone


@runtime_checkable
class WarmStart(Protocol):
    """A method (`methods.base.Method`) whose training may begin with what its search has trained.

    Where `settings.warm_start` in the search's decision is true, tables say so.
    """

    def warm_start(self, backbone: Backbone, searched: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What training begins with instead of fresh weights: all that trains, by name, or nothing at all.

        backbone: adapted, as it will be trained. searched: all that the search trained, after its last step.
        Names are those of the parameters in the model with its head, `backbone.…` and `head.…`.
        """
