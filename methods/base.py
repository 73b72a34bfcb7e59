"""What a method is: how a pretrained backbone is changed, which parameters train, what is deployed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone, HuggingFaceForm
from harness.backbones.folding import fold
from harness.digests import digest_json


@dataclass(frozen=True)
class NoOptions:
    """A method without options of its own."""


OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True)
class Trace:
    """How a search came to its choice; `harness plot` draws it.

    arms: names of what the search chooses among. values: `(U + 1, N)`, a row before any of the U updates and
    one after each, a value an arm; a high value means that the arm is chosen. chosen: names of the arms chosen
    in the end. epoch_starts: the update with which an epoch begins (from 0), and the epoch's number (from 1).
    outcome: what happens to a chosen arm, for the figure's text.
    """

    arms: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    chosen: tuple[str, ...]
    epoch_starts: tuple[tuple[int, int], ...] = ()
    outcome: str = "chosen"


@dataclass(frozen=True)
class Diagram:
    """The model's blocks in order, and those that are skipped, by name; the report draws them."""

    blocks: tuple[str, ...]
    skipped: tuple[str, ...]


class Decision(ABC):
    """What a search has decided. A frozen dataclass that says itself how it is stored, printed and compared."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes, JSON-able and short: it stands in the record. No history."""

    @classmethod
    @abstractmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The decision again, without its history; enough for `Method.decide`."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """One line for progress and tables: `skipped joint.3, joint.7`."""

    def figures(self) -> dict[str, str]:
        """Name → exact text: what must come out the same when a cell is reproduced."""
        return {"decision of the search": digest_json(self.to_json())}

    def history(self) -> Any:
        """How the search got there, JSON-able, of any length; kept in a compressed file beside the record."""
        return None

    def trace(self) -> Trace | None:
        """What `harness plot` draws of the search; None: nothing."""
        return None

    def diagram(self) -> Diagram | None:
        """Which blocks are skipped, if the decision is about that."""
        return None


AnyDecision: TypeAlias = Decision
"""`Decision` where `Method`'s attribute of the same name would be meant."""


class Memory(Protocol):
    """Search state besides the model, saved each epoch so that the search can resume."""

    def state(self) -> dict[str, Any]:
        """Everything the search has found so far, in tensors and plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""


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

        With a `memory`, an interrupted search resumes at its last epoch: the trainer saves the memory's state
        together with the model, the optimiser and all random states, and restores it before the first step.
        """

    def held_out_batch(self, fresh: bool = True) -> Any:
        """The next batch of the part kept for rewards (`fresh=False`: always the first one)."""

    def training_batch(self) -> Any:
        """The first batch of the part that is trained on (what the published search rewards on)."""

    def loss(self, batch: Any, training_mode: bool = False) -> float:
        """The task's mean loss per example on `batch`, as published, without gradient."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that train with a learning rate or weight decay of their own.

    learning_rate_scale: their learning rate as a multiple of the cell's.
    weight_decay: whether their matrices decay, as elsewhere; False: none of them does.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    learning_rate_scale: float = 1.0
    weight_decay: bool = True


@dataclass(frozen=True)
class CostCase:
    """A form of a method that `harness profile` counts.

    name: what tells it from the method's other forms, "" where there is one form only.
    decision: what `Method.decide` is given first; None: nothing.
    """

    name: str = ""
    decision: Decision | None = None


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
    """True if every inserted module processes tokens independently, or heeds `BlockInput.queries`. Training is
    then faster: the last blocks compute the pooled token alone. False for a convolution over patches, say."""
    dynamic: ClassVar[bool] = False
    """True if the cost of an example depends on the example (early exit, routing). MACs and latency are then
    measured over real test examples."""
    exports: ClassVar[tuple[str, ...]] = ()
    """Formats of `harness export` that `export` can write: `adapters`, `peft`."""

    searches: ClassVar[bool] = False
    """Whether `search` runs before training."""
    Decision: ClassVar[type[Any]]
    """The `Decision` that `search` returns and `decide` takes; needed if `searches`."""
    search_epochs: ClassVar[int] = 0
    """Epochs that `search` trains for, for progress and time estimates."""
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

    def search(self, trainer: SearchTrainer) -> AnyDecision:
        """Decide something before training (DAS: which blocks to skip).

        `trainer.backbone` is freshly loaded and not adapted. Called only if `searches`.
        """
        raise TypeError(f"{self.name} has no search")

    def decide(self, decision: Any) -> None:
        """Take the decision of a search, also one from a record, before `adapt`. Called only if `searches`.

        decision: an instance of the class's own `Decision`.
        """
        raise TypeError(f"{self.name} has no search")

    def warm_start(self, backbone: Backbone, searched: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What training begins with instead of fresh weights: everything that trains, by name, or {}.

        backbone: adapted, as it will be trained. searched: all that the search trained, after its last step.
        Names are those of the parameters in the model with its head, `backbone.…` and `head.…`.
        Called only if `searches`; tables say which methods begin with something.
        """
        return {}

    def regularizer(self, backbone: Backbone) -> Tensor | None:
        """A scalar with gradient that is added to the task's loss at every training step; None: nothing is."""
        return None

    def before_step(self, step: int, total: int) -> None:
        """Called before every optimiser step of training. step: from 0 over the whole training, of `total`.

        A resumed training continues the count. Only parameters that train are saved at the end of an epoch, so
        whatever else changes with the steps must follow from `step` alone.
        """

    def parameter_groups(self, backbone: Backbone) -> Sequence[ParameterGroup]:
        """Parameters of the adapted backbone that train with rates of their own; the rest train as usual.

        A parameter may be in one group only, and must require gradient.
        """
        return ()

    def cost_cases(self, backbone: Backbone) -> Sequence[CostCase]:
        """The forms of the method that `harness profile` shows: by default the method as it is.

        backbone: as loaded, possibly on the `meta` device.
        """
        return (CostCase(),)

    def finalize(self, backbone: Backbone) -> None:
        """Turn the trained backbone into what is deployed, with the same outputs.

        By default blocks are folded (`harness.backbones.folding`); a method that has more to do, such as merging
        updates into the projections, does so first.
        """
        fold(backbone)

    def export(
        self, form: str, target: HuggingFaceForm, blocks: Mapping[int, Mapping[str, Tensor]], output: Path
    ) -> str:
        """Write the tuned weights into the folder `output` in one of the formats `exports`.

        target: the library's model with the pretrained weights; it may be changed.
        blocks: what was tuned, by the block's index and the name within the block.
        Returns the lines of Python that load the files from the folder `FOLDER` onto `model`.

        Raises:
            UserError: the format cannot express these options.
        """
        raise TypeError(f"{self.name} has no {form} form")

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
