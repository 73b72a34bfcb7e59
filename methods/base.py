"""What a method is: how a pretrained backbone is changed, which parameters train, what is deployed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import nn

from harness.backbones.base import Backbone
from harness.backbones.folding import fold


@dataclass(frozen=True)
class NoOptions:
    """A method without options of its own."""


OptionsT = TypeVar("OptionsT")


class Memory(Protocol):
    """What a search knows beside the model: kept at the end of every epoch, so that it can go on there."""

    def state(self) -> dict[str, Any]:
        """Everything the search has found so far, in tensors and plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""


class SearchTrainer(Protocol):
    """What a method gets to search with: a model to train on a search split, and held-out batches.

    The trainer's data are cut from the training split only; its two parts are disjoint.
    """

    backbone: Backbone
    generator: torch.Generator
    """The only source of randomness a search may draw from (CPU)."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch of the search."""

    def train(
        self,
        epochs: int,
        before_step: Callable[[int, int], None],
        after_step: Callable[[int, int], None],
        memory: Memory | None = None,
    ) -> None:
        """Train what requires gradient for `epochs`; the callbacks get (epoch, step), both from 0.

        An interrupted search goes on at its last epoch if it has a `memory`: the trainer keeps that together
        with the model, the optimiser and all random states, and restores it before the first step.
        """

    def held_out_batch(self, fresh: bool = True) -> Any:
        """The next batch of the part kept for rewards (`fresh=False`: always the first one)."""

    def training_batch(self) -> Any:
        """The first batch of the part that is trained on (what the published search rewards on)."""

    def loss(self, batch: Any, training_mode: bool = False) -> float:
        """The task's mean loss per example on `batch`, as published, without gradient."""


class Method(ABC, Generic[OptionsT]):
    """One way of adapting a backbone; a subclass is one file in `methods/`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for `harness list` and the tables' footnotes."""
    source: ClassVar[str]
    """The paper."""
    Options: ClassVar[type[Any]] = NoOptions
    """A frozen dataclass whose fields have defaults; written inline as `name[field=value]`."""
    learning_rate_scale: ClassVar[float] = 1.0
    """Default learning rate as a multiple of the backbone's own."""
    per_token: ClassVar[bool] = False
    """Whether all it inserts gives a token the same result with and without the others at hand, or takes part
    in `Block.first`. Training is then faster: the last blocks compute the pooled token alone. Not so of a
    convolution over patches, say."""
    searches: ClassVar[bool] = False
    """Whether `search` runs before training."""
    search_holdout: ClassVar[float] = 0.2
    """Share of the training split's groups that the search keeps apart for its rewards."""

    def __init__(self, options: OptionsT | None = None) -> None:
        self.options: OptionsT = options if options is not None else self.Options()

    @abstractmethod
    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Freeze the backbone, insert modules, and mark what trains by `requires_grad`.

        New weights are drawn from `generator` (CPU) only. The task's head and
        `backbone.common_parameters()` are made trainable by the caller, alike for every method.
        """

    def search(self, trainer: SearchTrainer) -> dict[str, Any]:
        """Decide something before training (DAS: which blocks to skip); JSON-able, stored in the record.

        `trainer.backbone` is freshly loaded and not adapted. Called only if `searches`.
        """
        raise TypeError(f"{self.name} has no search")

    def decide(self, decision: dict[str, Any]) -> None:
        """Take the decision of a search (also from a record) before `adapt`. Called only if `searches`."""
        raise TypeError(f"{self.name} has no search")

    def finalize(self, backbone: Backbone) -> None:
        """Turn the trained backbone into what is deployed, with the same outputs.

        By default blocks are folded (`harness.backbones.folding`); a method that has more to do, such as merging
        updates into the projections, does so first.
        """
        fold(backbone)

    def method_parameters(self, backbone: Backbone) -> Iterator[nn.Parameter]:
        """The parameters this method added (not those of the pretrained backbone)."""
        for module in self.method_modules(backbone):
            yield from module.parameters()

    def method_modules(self, backbone: Backbone) -> list[nn.Module]:
        """The modules this method added, outermost only, wherever they sit (also after `finalize`).

        Every added module is an instance of `Inserted`; bare parameters live inside one.
        """
        found: list[nn.Module] = []

        def walk(module: nn.Module) -> None:
            for child in module.children():
                if isinstance(child, Inserted):
                    found.append(child)
                else:
                    walk(child)

        walk(backbone)
        return found

    def config(self) -> dict[str, Any]:
        """The resolved options, for the record."""
        return asdict(self.options)  # type: ignore[call-overload, no-any-return]


class Inserted(nn.Module):
    """Base class of modules that a method adds; all of their own parameters count as the method's."""


def freeze(backbone: Backbone) -> None:
    """Stop every parameter of the backbone from training."""
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
