"""What a task is: examples from official files, a head, a forward pass, a loss, predictions and metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
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
    """One example: its id in the official files, its text, its images, and what is to be predicted.

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
    """Model inputs (one `Inputs` per image of an example), targets, and the examples' ids."""

    inputs: tuple[Inputs, ...]
    targets: Tensor | None
    ids: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return replace(
            self,
            inputs=tuple(part.to(device) for part in self.inputs),
            targets=None if self.targets is None else self.targets.to(device, non_blocking=True),
        )

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Recipe:
    """How long a task is trained on unless the user says otherwise."""

    epochs: int
    batch_size: int


@dataclass(frozen=True)
class Data:
    """A task's data as read from its files.

    splits: examples of train, val (for every choice) and test (for reporting only).
    provenance: which official split each came from, counts, digests of the files' bytes.
    """

    splits: Mapping[str, Sequence[Example]]
    provenance: Mapping[str, Any]


Prediction = dict[str, Any]
"""One example's prediction, JSON-able: always has "id" and "group"; the rest is the task's."""

OptionsT = TypeVar("OptionsT")


class Task(ABC, Generic[OptionsT]):
    """One task; a subclass is one file in `tasks/`."""

    name: ClassVar[str]
    title: ClassVar[str]
    """As papers call it: `VQA2.0`."""
    version: ClassVar[int]
    """Raised whenever scores change meaning."""
    primary_metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    scorer: ClassVar[Scorer]
    """How predictions are scored, and what each metric counts."""
    images_per_example: ClassVar[int] = 1
    """Images that a forward pass of one example reads."""
    evaluates_splits: ClassVar[bool] = False
    """Whether `evaluate` is called on a split instead of `predict` on its batches."""
    Options: ClassVar[type[Any]]
    recipe: ClassVar[Recipe]
    """As published."""
    embedded_recipe: ClassVar[Recipe] = Recipe(epochs=4, batch_size=16)
    """On the embedded benchmark: small batches, because what it lacks is optimiser steps, not examples."""

    def __init__(self, options: OptionsT | None = None) -> None:
        self.options: OptionsT = options if options is not None else self.Options()

    @property
    def texts_per_example(self) -> int:
        """Texts that a training example is put through the backbone with (retrieval: negatives too)."""
        return 1

    @abstractmethod
    def load(self, root: Path) -> Data:
        """Read the official files under `root`. Raises `UserError` naming the file and place at fault."""

    def without_data(self) -> None:
        """Set what `load` would read, as published, and need nothing of pretrained weights.

        The task can then build its head and be profiled, without data or weights.
        """

    def embedded_data(self, cache: Path) -> Path:
        """The folder of the embedded benchmark's files, generated under `cache` on first use."""
        raise UserError(f"{self.name}: there is no embedded data for it; name its folder with --data-root.")

    def majority_score(self, data: Data) -> float | None:
        """The primary metric, in percent, of always giving train's most frequent answer on test."""
        return None

    @abstractmethod
    def build_head(self, backbone: Backbone, generator: torch.Generator) -> nn.Module:
        """A fresh head over `backbone.feature_dim`, weights from `generator`. Call after `load` or `without_data`."""

    @abstractmethod
    def forward(self, backbone: Backbone, head: nn.Module, batch: Batch) -> Tensor:
        """Logits of a batch."""

    @abstractmethod
    def collate_targets(self, examples: Sequence[Example]) -> Tensor | None:
        """Targets of a batch as one tensor; None if the split has none."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The published training loss, a scalar."""

    @abstractmethod
    def predict(self, logits: Tensor, examples: Sequence[Example]) -> list[Prediction]:
        """What is kept of each example: its prediction and, where known, its score."""

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Metrics in percent from per-example predictions; a pure function. Has `primary_metric`."""
        return self.scorer.score(predictions)

    @abstractmethod
    def write_submission(self, predictions: Sequence[Prediction], path: Path) -> None:
        """The file the official evaluation server or script takes."""

    def training_batches(self, loader: Any, seed: int) -> Any:
        """What is trained on, from the loader of the training split (retrieval adds negatives)."""
        return loader

    def evaluate(
        self,
        scores_of: Callable[[Batch], Tensor],
        loader: Any,
        on_batch: Callable[[int], None],
        partial: PartialScores | None = None,
    ) -> list[Prediction]:
        """Predictions of a whole split, where an example alone has none; called if `evaluates_splits`.

        partial: where to save what is done, so that an interrupted evaluation can go on; None: nowhere.
        """
        raise TypeError(f"{self.name} is evaluated example by example")

    def config(self) -> dict[str, Any]:
        """The resolved options, for the record."""
        return asdict(self.options)  # type: ignore[call-overload, no-any-return]
