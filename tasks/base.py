"""The contract of a task: examples from official files, head, forward pass, loss, predictions and metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.inputs import Inputs
from harness.errors import UserError
from tasks.resumable_scores import PartialScores
from tasks.scorer import Scorer

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Example:
    """One example: its id in the official files, its text, its images and its target.

    target: what `Task.collate_targets` reads (VQA: `{answer index: soft score}`); None where unknown.
    group: examples with the same group (the image id) stay together when a split is cut or resampled.
    """

    id: str
    text: str
    images: tuple[Path, ...]
    target: Any
    group: str


@dataclass(frozen=True)
class Batch:
    """Model inputs (one `Inputs` per image of an example), targets, and the examples' ids.

    host_targets: the targets, always on the CPU: reading those of a GPU would wait for it. None if not given; see
        `targets_on_host`.
    """

    inputs: tuple[Inputs, ...]
    targets: Tensor | None
    ids: tuple[str, ...]
    host_targets: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`, except what is always on the CPU."""
        return replace(
            self,
            inputs=tuple(part.to(device) for part in self.inputs),
            targets=None if self.targets is None else self.targets.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which a GPU copies by itself."""
        return replace(
            self,
            inputs=tuple(part.pin_memory() for part in self.inputs),
            targets=None if self.targets is None else self.targets.pin_memory(),
        )

    def targets_on_host(self) -> Tensor | None:
        """The targets on the CPU. Waits for a GPU unless `host_targets` is given."""
        if self.host_targets is not None or self.targets is None:
            return self.host_targets
        return self.targets.cpu()

    def tensors(self) -> Iterator[Tensor]:
        """All tensors on the device of the batch."""
        for part in self.inputs:
            yield from part.tensors().values()
        if self.targets is not None:
            yield self.targets

    def split(self, size: int) -> Iterator[Batch]:
        """Parts of up to `size` examples, in order; an example stays with all its texts and images."""
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield Batch(
                tuple(part.examples(start, stop) for part in self.inputs),
                None if self.targets is None else self.targets[start:stop],
                self.ids[start:stop],
                None if self.host_targets is None else self.host_targets[start:stop],
            )

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Recipe:
    """Default length of training and batch size of a task."""

    epochs: int
    batch_size: int


@dataclass(frozen=True)
class Data:
    """A task's data as read from its files.

    splits: examples of train, val (on which every choice is made) and test (for reporting only).
    provenance: which official split each came from, counts, digests of the files' bytes.
    """

    splits: Mapping[str, Sequence[Example]]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Share:
    """The part of an evaluation that falls to one of several processes.

    gather: sends a value to rank 0, which gets the values of all ranks in their order; the others get [].
    """

    rank: int = 0
    world_size: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]


Prediction = dict[str, Any]
"""One example's prediction, as JSON values: always has "id" and "group"; each task adds its own keys."""

OptionsT = TypeVar("OptionsT")


class Task(ABC, Generic[OptionsT]):
    """One task; a subclass is one file in `tasks/`."""

    name: ClassVar[str]
    title: ClassVar[str]
    """The name in papers: `VQA2.0`."""
    version: ClassVar[int]
    """Increased whenever scores change meaning."""
    primary_metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    scorer: ClassVar[Scorer]
    """How predictions are scored, and which examples each metric counts."""
    images_per_example: ClassVar[int] = 1
    """Images of one example."""
    evaluates_splits: ClassVar[bool] = False
    """True if `evaluate` is called for a split instead of `predict` for its batches."""
    official_splits: ClassVar[tuple[str, ...]] = ()
    """Official splits that `read_official` reads, beside those of `load`."""
    later_options: ClassVar[tuple[str, ...]] = ()
    """Options younger than stored results, which stay comparable: `config` names them only where they are set."""
    Options: ClassVar[type[Any]]
    recipe: ClassVar[Recipe]
    """The published recipe."""
    embedded_recipe: ClassVar[Recipe] = Recipe(epochs=4, batch_size=16)
    """Recipe for the embedded benchmark: small batches, because its training split is small."""

    def __init__(self, options: OptionsT | None = None) -> None:
        self.options: OptionsT = options if options is not None else self.Options()

    @property
    def texts_per_example(self) -> int:
        """Texts that one training example sends through the backbone (retrieval: negatives included)."""
        return 1

    @abstractmethod
    def load(self, root: Path) -> Data:
        """Read the official files under `root`. Raises `UserError` naming the file and place at fault."""

    def read_official(self, root: Path, split: str) -> Sequence[Example]:
        """All examples of one of `official_splits`, for a submission. Call after `load`.

        Raises `UserError` naming the file and place at fault.
        """
        raise ValueError(f"{self.name} has no official split {split}")

    def without_data(self) -> None:
        """Set what `load` would read to its published value, so that the head can be built and profiled.

        Neither data nor pretrained weights are needed then.
        """

    def embedded_data(self, cache: Path) -> Path:
        """The folder of the embedded benchmark's files, generated under `cache` on first use."""
        raise UserError(f"{self.name}: has no embedded data; name the folder of its files with --data-root.")

    def majority_score(self, data: Data) -> float | None:
        """Primary metric on test, in percent, of always predicting train's most frequent answer; None if unknown."""
        return None

    @abstractmethod
    def build_head(self, backbone: Backbone, generator: torch.Generator) -> nn.Module:
        """A fresh head over `backbone.feature_dim`, weights from `generator`. Call after `load` or `without_data`."""

    @abstractmethod
    def forward(self, backbone: Backbone, head: nn.Module, batch: Batch) -> Tensor:
        """Logits of a batch; what the loss reads.

        On generative backbones: of the true answers' tokens, or of the first token if the batch has no targets.
        """

    def answer(self, backbone: Backbone, head: nn.Module, batch: Batch) -> Tensor:
        """What `predict` reads, one row per example; by default the logits. Generative backbones write answers."""
        return self.forward(backbone, head, batch)

    @abstractmethod
    def collate_targets(self, examples: Sequence[Example]) -> Tensor | None:
        """Targets of a batch as one tensor; None if the split has none."""

    def label_texts(self, targets: Tensor) -> Sequence[str] | None:
        """The text of each target, such as an answer, for methods that compare images with it; None: there is none.

        targets: on the CPU.
        """
        return None

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The published training loss, a scalar: a mean over the examples, so that batches can be split."""

    @abstractmethod
    def predict(self, logits: Tensor, examples: Sequence[Example]) -> list[Prediction]:
        """The record of each example: its prediction and, if its target is known, its score."""

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Metrics in percent from per-example predictions; a pure function. Has `primary_metric`."""
        return self.scorer.score(predictions)

    @abstractmethod
    def write_submission(self, predictions: Sequence[Prediction], path: Path) -> None:
        """Write the file that the official evaluation server or script reads."""

    def training_batches(self, loader: Any, seed: int) -> Any:
        """Training batches from the loader of the training split (retrieval adds negatives)."""
        return loader

    def evaluate(
        self,
        scores_of: Callable[[Batch], Tensor],
        loader: Any,
        on_batch: Callable[[int], None],
        partial: PartialScores | None = None,
        share: Share = Share(),
    ) -> list[Prediction]:
        """Predictions of a whole split, for tasks that cannot predict one example alone; see `evaluates_splits`.

        partial: where finished scores are saved, so that an interrupted evaluation resumes; None: not saved.
        share: what this process evaluates; rank 0 returns all predictions, the others none. Given only if several
            processes evaluate together.
        """
        raise TypeError(f"{self.name} is evaluated example by example")

    def config(self) -> dict[str, Any]:
        """The resolved options, for the record; see `later_options`."""
        chosen, default = asdict(self.options), asdict(self.Options())  # type: ignore[call-overload]
        return {
            name: value
            for name, value in chosen.items()
            if name not in self.later_options or value != default[name]
        }
