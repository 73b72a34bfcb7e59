"""Base of tasks over a fixed list of labels: head, forward pass over one or more images, loss, predictions."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.backbones.base import Backbone
from harness.errors import UserError
from tasks.answers import Answering, Answers, answer_forward, find_answers, headless, make_answers
from tasks.base import Batch, Data, Example, Prediction, SplitName, Task
from tasks.data.columns import image_paths
from tasks.data.files import describe_images
from tasks.data.subsets import Limits, blanked, limited
from tasks.heads import build_classifier

OptionsT = TypeVar("OptionsT", bound=Limits)


@dataclass(frozen=True, slots=True)
class Label:
    """An example's class index, and the official subsets of its split that it belongs to."""

    index: int
    subsets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Examples that become a split.

    official: name of the official split they come from.
    part: which part of it, in words.
    files: SHA-256 (hex) by file name.
    notes: further facts for the record.
    """

    official: str
    part: str
    examples: Sequence[Example]
    files: Mapping[str, str]
    notes: Mapping[str, Any]


class Classification(Task[OptionsT]):
    """A task whose examples are a text and `images_per_example` images, with one of `classes` as the answer."""

    classes: ClassVar[tuple[str, ...]]
    """The label of each class index, as the official files write it."""
    primary_metric: ClassVar[str] = "accuracy"
    answer_length: ClassVar[int] = 1
    """Longest answer that a generative backbone writes, in tokens."""
    spoken: Answers | None = None
    """The labels as answers of a generative backbone; set by `build_head`."""

    @property
    def answering(self) -> Answering:
        """How a generative backbone answers: the task's option; by likelihood where there is none."""
        return getattr(self.options, "answering", "likelihood")

    @abstractmethod
    def read_parts(self, root: Path) -> dict[SplitName, Part]:
        """The official files under `root`, as splits. Raises `UserError` naming the file and place at fault."""

    def load(self, root: Path) -> Data:
        """Read the official files. Images are opened later, by the loader.

        Raises `UserError` naming the file and place at fault.
        """
        files: dict[str, str] = {}
        splits: dict[str, Sequence[Example]] = {}
        origins: dict[str, dict[str, Any]] = {}
        images: dict[SplitName, list[str]] = {}
        for name, part in self.read_parts(root).items():
            options = self.options
            examples = limited(
                part.examples, options.limit_of(name), options.limit_seed, lambda example: example.id
            )
            if not examples:
                raise UserError(f"{root}: {part.official} ({part.part}) has no examples for the {name} split")
            files |= part.files
            splits[name] = blanked(examples, options.blank)
            images[name] = image_paths(examples)
            origins[name] = {
                "official split": part.official,
                "part": part.part,
                **part.notes,
                "examples": len(examples),
            }
        for name, described in describe_images(images).items():
            origins[name] |= described
        return Data(splits, {"splits": origins, "files": files, "answers": {"classes": list(self.classes)}})

    def majority_score(self, data: Data) -> float | None:
        """Accuracy of train's most frequent label (of equally frequent ones the first class)."""
        counts = Counter(example.target.index for example in data.splits["train"])
        majority = min(counts, key=lambda index: (-counts[index], index))
        hits = [example.target.index == majority for example in data.splits["test"]]
        return 100 * sum(hits) / len(hits)

    def build_head(self, backbone: Backbone, generator: torch.Generator) -> nn.Module:
        """Two layers over the concatenated features; hidden size twice the width (ViLT and METER: 1536).

        Also adds the backbone's token types for further images, which are trained with the head. There is no head on
        generative backbones, which read all images in one prompt and whose vocabulary gives the labels.
        """
        self.spoken = make_answers(backbone, [label.lower() for label in self.classes], self.answer_length)
        if self.spoken is not None:
            return headless()
        backbone.widen_token_types(1 + self.images_per_example)
        features = self.images_per_example * backbone.feature_dim
        return build_classifier(features, 2 * backbone.width, len(self.classes), generator)

    def forward(self, backbone: Backbone, head: nn.Module, batch: Batch) -> Tensor:
        """Logits `(B, classes)` of one pass per image, image k with token type k + 1 (from 0)."""
        if self.spoken is not None:
            return answer_forward(self.spoken, backbone, batch, lambda targets: targets)
        # Changes nothing unless the head was built for another copy of the backbone.
        backbone.widen_token_types(1 + self.images_per_example)
        features = [
            backbone(replace(inputs, image_token_type=index))
            for index, inputs in enumerate(batch.inputs, start=1)
        ]
        logits: Tensor = head(torch.cat(features, dim=-1))
        return logits

    def answer(self, backbone: Backbone, head: nn.Module, batch: Batch) -> Tensor:
        """Logits `(B, classes)`; on a generative backbone log-likelihoods of the labels, or what it writes."""
        if self.spoken is None:
            return self.forward(backbone, head, batch)
        return find_answers(self.spoken, backbone, batch, self.answering)

    def collate_targets(self, examples: Sequence[Example]) -> Tensor | None:
        """Class indices `(B,)` int64."""
        return torch.tensor([example.target.index for example in examples])

    def label_texts(self, targets: Tensor) -> Sequence[str]:
        """The names of the classes."""
        return [self.classes[index] for index in targets.tolist()]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of the classes, or of the label's tokens, averaged over the batch."""
        if self.spoken is not None:
            return self.spoken.loss(logits, targets)
        return functional.cross_entropy(logits, targets)

    def choices(
        self, logits: Tensor, examples: Sequence[Example], texts: Sequence[str] | None = None
    ) -> list[int | None]:
        """The predicted class of each example; None: what was written is no class.

        logits: what `answer` returns. texts: what was written, or None.
        """
        if texts is not None:
            return [self.class_of(text) for text in texts]
        return list(logits.argmax(dim=-1).tolist())

    def class_of(self, text: str) -> int | None:
        """The class that a written answer means; None if there is none."""
        labels = [label.lower() for label in self.classes]
        return labels.index(text.lower()) if text.lower() in labels else None

    def predict(self, logits: Tensor, examples: Sequence[Example]) -> list[Prediction]:
        """The written or most probable label, the true one, and whether they agree (1 or 0).

        Where answers are written, `written` is the text that the label was read from.
        """
        predictions = []
        texts = None
        if self.spoken is not None and self.answering == "generation":
            texts = self.spoken.read(logits)
        choices = self.choices(logits, examples, texts)
        for row, (example, choice) in enumerate(zip(examples, choices, strict=True)):
            target = cast(Label, example.target)
            predictions.append(
                {
                    "id": example.id,
                    "group": example.group,
                    "text": example.text,
                    "prediction": None if choice is None else self.classes[choice],
                    **({} if texts is None else {"written": texts[row]}),
                    "label": self.classes[target.index],
                    "score": float(choice == target.index),
                    **({"subsets": list(target.subsets)} if target.subsets else {}),
                }
            )
        return predictions
