"""The base class of methods: how a backbone is adapted, which parameters train, and what is deployed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone, HuggingFaceForm
from harness.backbones.folding import fold
from methods.decision import Decision as Decision
from methods.decision import Diagram as Diagram
from methods.decision import Trace as Trace


@dataclass(frozen=True)
class NoOptions:
    """A method without options of its own."""


OptionsT = TypeVar("OptionsT")


AnyDecision: TypeAlias = Decision
"""`Decision`, for use inside `Method`, where that name is a class attribute."""


class Memory(Protocol):
    """Search state besides the model, saved in checkpoints so that the search can resume."""

    def state(self) -> dict[str, Any]:
        """All state of the search, as tensors and plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""


class SearchTrainer(Protocol):
    """Given to `Method.search`: trains a model on one part of the training split, and provides batches of another.

    The two parts are disjoint. No validation or test data are used.
    """

    backbone: Backbone
    generator: torch.Generator
    """The only source of random numbers that a search may use (CPU)."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch of the search."""

    def train(
        self,
        epochs: int,
        before_step: Callable[[int, int], None],
        after_step: Callable[[int, int], None],
        memory: Memory | None = None,
    ) -> None:
        """Train all parameters that require gradient for `epochs`; callbacks get (epoch, step), both from 0.

        With a `memory`, an interrupted search resumes from its last checkpoint: the trainer saves the memory's state
        together with the model, the optimiser and all random states, and restores it before the first step.
        """

    def held_out_batch(self, fresh: bool = True) -> Any:
        """The next batch of the held-out part (`fresh=False`: always the first one)."""

    def training_batch(self) -> Any:
        """The first batch of the part that is trained on, unaugmented; the published DAS computes its rewards on it."""

    def loss(self, batch: Any, training_mode: bool = False) -> float:
        """The task's mean loss per example on `batch`, without gradient.

        Before `train`, the loss of the backbone and the head as they are.

        training_mode: compute it with dropout.
        """

    def features(self, batch: Any) -> tuple[Tensor, Tensor]:
        """What the head reads `(N, D)` and where its outputs should move `(N, C)`, both float32 and on the CPU.

        The second is the negative gradient of the loss at outputs of 0. The model is in evaluation mode.
        """


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with their own learning rate or weight decay.

    learning_rate_scale: their learning rate as a multiple of the cell's.
    weight_decay: True: their matrices decay, like those of other parameters; False: none of them decays.
    normalized: a step moves all of them together by the length of the learning rate, against the gradient, instead of
        AdamW's step.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    learning_rate_scale: float = 1.0
    weight_decay: bool = True
    normalized: bool = False


@dataclass(frozen=True)
class TrainingPart:
    """The examples that have just gone through the model in training.

    size: their number B.
    losses: computes the task's loss of each of them, `(B,)`, without gradient.
    labels: the text of each one's label, such as an answer; None if the task has none.
    """

    size: int
    losses: Callable[[], Tensor]
    labels: Callable[[], Sequence[str] | None] = lambda: None


@dataclass(frozen=True)
class CostCase:
    """One form of a method that `harness profile` counts.

    name: distinguishes it from the method's other forms; "" if there is only one.
    decision: passed to `Method.decide` before `adapt`; None: `decide` is not called.
    """

    name: str = ""
    decision: Decision | None = None


@dataclass(frozen=True)
class Recipe:
    """How a method was trained on one backbone and one task.

    settings: of the run, by key. method, task: options of the method and of the task, as in a spec.
    """

    settings: Mapping[str, Any]
    method: Mapping[str, str] = field(default_factory=dict)
    task: Mapping[str, str] = field(default_factory=dict)


class Slot(Enum):
    """A part of a backbone that a method may fill. Methods combine if they fill different slots.

    Methods that fill a later one adapt after those that fill an earlier one.
    """

    PIXELS = "the pixels of images"
    WEIGHTS = "the choice of pretrained weights that train"
    PROJECTIONS = "the projections of the blocks"
    SEQUENTIAL = "the slots after the sublayers"
    PARALLEL = "the slots beside the sublayers"
    PROMPT = "the place before the first block"
    TOKENS = "the number of tokens within a block"
    BLOCKS = "the places of whole blocks"


class Method(ABC, Generic[OptionsT]):
    """One way of adapting a backbone; a subclass is one file in `methods/`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for `harness list` and the tables' footnotes."""
    source: ClassVar[str]
    """The paper."""
    family: ClassVar[str] = "other"
    """Kind of method, for `harness methods`: adapters, prompts, block skipping, …"""
    Options: ClassVar[type[Any]] = NoOptions
    """A frozen dataclass whose fields have defaults; users write `name[field=value]`."""
    learning_rate_scale: ClassVar[float] = 1.0
    """Default learning rate as a multiple of the backbone's."""
    per_token: ClassVar[bool] = False
    """True if every inserted module processes tokens independently, or respects `BlockInput.queries`. Training is
    then faster, because the last blocks compute only the pooled token. False, for example, for a convolution over
    patches."""
    dynamic: ClassVar[bool] = False
    """True if the cost depends on the example (early exit, routing). MACs and latency are then measured on real
    test examples."""
    exports: ClassVar[tuple[str, ...]] = ()
    """Formats of `harness export` that `export` can write: `adapters`, `peft`."""

    fills: ClassVar[frozenset[Slot] | None] = None
    """What the method fills, so that it combines with others (`lora+das`); None: it does not combine. A method that
    combines must put what `finalize` does before folding into `merge`."""
    transfers: ClassVar[bool] = False
    """True if what is trained can be used on another backbone without tuning (`harness transfer`, `carry_over`)."""
    members: Sequence[Method[Any]] = ()
    """The methods that this one combines (`methods.composed`)."""

    recipes: ClassVar[Mapping[tuple[str, str], Recipe]] = MappingProxyType({})
    """Settings of the authors' code, by backbone and task."""
    uncounted: ClassVar[bool] = False
    """True if the authors' count of the method's parameters leaves out what it trains at `Backbone.prompt`."""
    rivals: ClassVar[tuple[str, ...]] = ()
    """Specs of methods that make the same choice by simpler rules, with an option `skip`; `harness audit` compares."""

    searches: ClassVar[bool] = False
    """Whether `search` runs before training."""
    Decision: ClassVar[type[Any]]
    """The `Decision` that `search` returns and `decide` takes; needed if `searches`."""
    search_epochs: ClassVar[int] = 0
    """Epochs that `search` trains, for progress and time estimates."""
    search_holdout: ClassVar[float] = 0.2
    """Share of the training split (in groups of examples) that the search holds out for its rewards."""

    def __init__(self, options: OptionsT | None = None) -> None:
        self.options: OptionsT = options if options is not None else self.Options()

    @abstractmethod
    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Freeze the backbone, insert modules, and set `requires_grad` on the parameters that train.

        generator: the only source of random numbers for new weights (CPU).

        The caller makes the task's head and `backbone.common_parameters()` trainable, for every method.
        """

    def search(self, trainer: SearchTrainer) -> AnyDecision:
        """Decide something before training (DAS: which blocks to skip).

        Called only if `searches`. `trainer.backbone` has just been loaded and is not adapted.
        """
        raise TypeError(f"{self.name} has no search")

    def decide(self, decision: Any) -> None:
        """Apply the decision of a search, or one from a record. Called before `adapt`, only if `searches`.

        decision: an instance of `self.Decision`.
        """
        raise TypeError(f"{self.name} has no search")

    def fixed(self, chosen: Sequence[str]) -> Mapping[str, str]:
        """Options with which this method skips exactly `chosen`, without a search. Needed if it has `rivals`."""
        raise TypeError(f"{self.name} cannot be told what to skip")

    def warm_start(self, backbone: Backbone, searched: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights that training starts with instead of new ones: all trained parameters by name, or {}.

        Called only if `searches`. Notes below tables name the methods that start with searched weights.

        backbone: adapted, as it will be trained. searched: the parameters that the search trained, after its last
        step. Names are those in the model with its head, `backbone.…` and `head.…`.
        """
        return {}

    def regularizer(self, backbone: Backbone) -> Tensor | None:
        """A scalar tensor that is added to the task's loss at every training step; None: nothing is added.

        A batch may go through the model in parts. This is then called after each part, and the values are averaged with
        the parts' sizes as weights, as the task's losses are.
        """
        return None

    def weighted_regularizer(self, backbone: Backbone, part: TrainingPart) -> Tensor | None:
        """As `regularizer`, for a term that depends on the examples; by default `regularizer`.

        part: the examples whose gradient is about to be computed.
        """
        return self.regularizer(backbone)

    def before_step(self, step: int, total: int) -> None:
        """Called before every optimiser step of training.

        step: number of the step in the whole training, from 0 to `total` − 1. It continues in a resumed training.

        Checkpoints hold only the parameters that train, so any other state must be a function of `step`.
        """

    def parameter_groups(self, backbone: Backbone) -> Sequence[ParameterGroup]:
        """Groups of the adapted backbone's parameters with their own learning rates; all others use the cell's.

        A parameter may be in only one group, and must require gradient.
        """
        return ()

    def routes(self, backbone: Backbone, run: Callable[[], object]) -> list[Tensor] | None:
        """For each forward pass in `run`, which blocks each row runs: `(rows, blocks)` bool, on the CPU.

        None, without a call of `run`, if all rows run the same blocks.
        """
        return None

    def cost_cases(self, backbone: Backbone) -> Sequence[CostCase]:
        """The forms of the method that `harness profile` shows; by default one.

        backbone: as loaded, possibly on the `meta` device.
        """
        return (CostCase(),)

    def finalize(self, backbone: Backbone) -> None:
        """Turn the trained backbone into its deployed form, with the same outputs.

        By default `merge`, then the blocks are folded (`harness.backbones.folding`).
        """
        self.merge(backbone)
        fold(backbone)

    def merge(self, backbone: Backbone) -> None:
        """What must happen before the blocks are folded, such as merging updates into the projections.

        Other methods may have replaced blocks, or filled their slots, too.
        """

    def carry_over(self, backbone: Backbone, tuned: Mapping[str, Tensor], image_size: int) -> None:
        """Put what was trained on another backbone into this one, whose weights stay as they are.

        Needed if the method `transfers`. tuned: the trained tensors, by their names in the other backbone.
        image_size: of the other backbone, in pixels.
        """
        raise TypeError(f"{self.name} cannot be used on another backbone")

    def export(
        self, form: str, target: HuggingFaceForm, blocks: Mapping[int, Mapping[str, Tensor]], output: Path
    ) -> str:
        """Write the tuned weights into the folder `output` in one of the formats `exports`.

        target: Hugging Face's model with the pretrained weights; it may be changed.
        blocks: the tuned tensors by block index and by name within the block.

        Returns:
            Lines of Python that load the files in the folder `FOLDER` into `model`.

        Raises:
            UserError: the format cannot represent these options.
        """
        raise TypeError(f"{self.name} has no {form} form")

    def method_parameters(self, backbone: Backbone) -> Iterator[nn.Parameter]:
        """The parameters that this method added (not those of the pretrained backbone)."""
        for module in self.method_modules(backbone):
            yield from module.parameters()

    def method_modules(self, backbone: Backbone) -> list[nn.Module]:
        """The outermost modules that this method added, also after `finalize`.

        Every added module is an `Inserted`; every added parameter is inside one.
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
    """Base class of the modules that a method adds. All of their parameters count as the method's."""


def freeze(backbone: Backbone) -> None:
    """Set `requires_grad` to False on every parameter of the backbone."""
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
