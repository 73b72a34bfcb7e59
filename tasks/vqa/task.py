"""VQA2.0: open-ended questions about photographs, as classification over the frequent answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.backbones.base import Backbone
from harness.errors import UserError
from harness.files import write_atomically
from tasks.answers import Answering, Answers, answer_forward, find_answers, headless, make_answers
from tasks.base import Batch, Data, Example, Prediction, Recipe, SplitName, Task
from tasks.data.columns import Columns, Numbers, image_paths
from tasks.data.files import describe_images
from tasks.data.subsets import Limits, blanked, cut_off, limited
from tasks.heads import build_classifier
from tasks.mini.vqa import ensure_vqa
from tasks.scorer import Scorer
from tasks.vqa.columns import SplitColumns, load_split, soft_scores
from tasks.vqa.files import (
    Vocabulary,
    count_vocabulary,
    find_answer_file,
    has_annotated_split,
    image_name,
    read_vocabulary,
)
from tasks.vqa.scorer import SCORER
from tasks.vqa.scoring import AnnotatorAnswer, normalize_answer, soft_accuracy

PUBLISHED_ANSWERS = 3129
"""Classes of the published vocabulary of VQA2.0."""

ANSWER_LENGTH = 10
"""Longest answer that a generative backbone writes, in tokens."""

HELD_OUT = 1000
"""Images of val2014 that ViLT holds out where it trains on both official splits."""


@dataclass(frozen=True)
class VQATarget:
    """What is known about the answers to a question.

    scores: soft target by class index; other classes have 0.
    answers: all annotators' answers, for the official accuracy.
    """

    scores: Mapping[int, float]
    answers: tuple[AnnotatorAnswer, ...]
    answer_type: str


@dataclass(frozen=True)
class VQAOptions(Limits):
    """Options of VQA beside the limits, which count questions.

    answers: path of an answer list (JSON: `label2ans`, `ans2label`, or ViLT's index → answer); "auto" takes the one
        beside the questions and counts by the official rule where there is none.
    test: official split to report on. "auto": test2015 where it has annotations, else val2014. With val2014,
        validation questions are cut off train2014; with any other, validation is val2014.
    val_fraction: share of train2014's images that is cut off for validation.
    train: "trainval" trains on train2014 and val2014, as for published results on test-dev2015 and test2015.
    holdout: with trainval, the images to choose the epoch on. "vilt": 1,000 images of val2014, left out of training
        (by hash; ViLT's code draws them without a seed). "meter": all of val2014, which METER's code also trains on.
    targets: soft targets count answers in "normalized" form, or "raw" as the annotators gave them, which is what ViLT's
        and METER's code does. The accuracy normalises in any case.
    answering: on generative backbones, answers are written greedily, or the most likely one of the list is taken.
    """

    answers: str = "auto"
    test: str = "auto"
    val_fraction: float = 0.1
    train: Literal["train2014", "trainval"] = "train2014"
    holdout: Literal["vilt", "meter"] = "vilt"
    targets: Literal["normalized", "raw"] = "normalized"
    answering: Answering = "generation"

    def __post_init__(self) -> None:
        Limits.__post_init__(self)
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, not {self.val_fraction}")
        if self.test not in ("auto", "val2014", "test2015", "test-dev2015"):
            raise ValueError(f"test must be auto, val2014, test2015 or test-dev2015, not '{self.test}'")
        if self.train == "trainval" and self.test == "val2014":
            raise ValueError("train=trainval trains on val2014, which then cannot be the test split")


Part = tuple[SplitColumns, str, np.ndarray | None]
"""An official split, which part of it is used (in words), and that part's questions: True, by question; None: all."""

Parts = Mapping[SplitName, Sequence[Part]]
"""What each split consists of."""


class VQA(Task[VQAOptions]):
    """VQA2.0 with the published answer vocabulary, head, loss and soft accuracy."""

    name: ClassVar[str] = "vqa"
    title: ClassVar[str] = "VQA2.0"
    version: ClassVar[int] = 1
    primary_metric: ClassVar[str] = "accuracy"
    scorer: ClassVar[Scorer] = SCORER
    Options: ClassVar[type[Any]] = VQAOptions
    recipe: ClassVar[Recipe] = Recipe(epochs=10, batch_size=256)
    embedded_recipe: ClassVar[Recipe] = Recipe(epochs=5, batch_size=16)
    official_splits: ClassVar[tuple[str, ...]] = ("test-dev2015", "test2015")
    later_options: ClassVar[tuple[str, ...]] = ("train", "holdout", "targets", "answering")

    answers: tuple[str, ...]
    """The answer of each class; set by `load`."""
    written: Answers | None = None
    """The answers on a generative backbone; set by `build_head`."""

    def load(self, root: Path) -> Data:
        """Read questions, annotations and the answer vocabulary. Images are opened later, by the loader.

        Raises `UserError` naming the file and place at fault.
        """
        train, other = load_split(root, "train2014"), load_split(root, "val2014")
        parts = self._parts(root, train, other)
        # train2014 and val2014 also where val2014 is what is tested on: that is the published 3,129.
        vocabulary = self._vocabulary(root, (train, other))
        self.answers = vocabulary.answers
        answer_index = {answer: index for index, answer in enumerate(vocabulary.answers)}
        officials = {official.name: official for of_split in parts.values() for official, _, _ in of_split}
        questions = {name: self._questions(root, each, answer_index) for name, each in officials.items()}
        files = {name: digest for each in officials.values() for name, digest in each.files.items()}
        splits: dict[str, Sequence[Example]] = {}
        origins: dict[str, dict[str, Any]] = {}
        images: dict[SplitName, list[str]] = {}
        for name, of_split in parts.items():
            used: list[Columns] = []
            unanswerable = 0
            for official, _, taken in of_split:
                columns, classes = questions[official.name]
                if taken is not None:
                    columns = columns.take(np.flatnonzero(taken))
                if name == "train":
                    assert classes is not None
                    # As in ViLT and METER: an answer outside the vocabulary cannot be learnt.
                    answerable = (classes[columns.rows] >= 0).any(axis=1)
                    unanswerable += int((~answerable).sum())
                    columns = columns.take(np.flatnonzero(answerable))
                used.append(columns)
            names = "+".join(official.name for official, _, _ in of_split)
            part = ", ".join(dict.fromkeys(part for _, part, _ in of_split))
            origins[name] = {"official split": names, "part": part}
            if name == "train":
                origins[name]["left out, no answer in the vocabulary"] = unanswerable
            examples = limited(
                used[0] if len(used) == 1 else Columns.joined(used),
                self.options.limit_of(name),
                self.options.limit_seed,
                lambda example: example.id,
            )
            if not examples:
                raise UserError(f"{root}: {names} ({part}) has no questions for the {name} split")
            splits[name] = blanked(examples, self.options.blank)
            images[name] = image_paths(examples)
            origins[name]["questions"] = len(examples)
        for name, described in describe_images(images).items():
            origins[name] |= described
        return Data(splits, {"splits": origins, "files": files, "answers": vocabulary.provenance})

    def read_official(self, root: Path, split: str) -> Sequence[Example]:
        """All questions of a test split, with annotations if there are any."""
        found = load_split(root, split, has_annotated_split(root, split))
        index = {answer: place for place, answer in enumerate(self.answers)}
        return self._questions(root, found, index)[0]

    @property
    def _raw(self) -> bool:
        return self.options.targets == "raw"

    def without_data(self) -> None:
        """Set as many answers as were published."""
        self.answers = tuple(str(index) for index in range(PUBLISHED_ANSWERS))

    def embedded_data(self, cache: Path) -> Path:
        """The mini benchmark's scenes and questions, in VQA v2's formats."""
        return ensure_vqa(cache)

    def majority_score(self, data: Data) -> float | None:
        """Soft accuracy of train's most frequent answer; None if test has no annotations."""
        annotated = all(example.target is not None for example in data.splits["test"])
        return majority_answer_accuracy(data) if annotated else None

    def build_head(self, backbone: Backbone, generator: torch.Generator) -> nn.Module:
        """Linear → LN → GELU → Linear; hidden size twice the backbone's width (ViLT and METER: 1536).

        None on generative backbones, whose vocabulary gives the answers.
        """
        self.written = make_answers(backbone, self.answers, ANSWER_LENGTH)
        if self.written is not None:
            return headless()
        return build_classifier(backbone.feature_dim, 2 * backbone.width, len(self.answers), generator)

    def forward(self, backbone: Backbone, head: nn.Module, batch: Batch) -> Tensor:
        """Logits `(B, answers)`; on generative backbones of the tokens of the answer with the highest target."""
        if self.written is not None:
            return answer_forward(self.written, backbone, batch, _likeliest)
        (inputs,) = batch.inputs
        logits: Tensor = head(backbone(inputs))
        return logits

    def answer(self, backbone: Backbone, head: nn.Module, batch: Batch) -> Tensor:
        """Logits `(B, answers)`, or a generative backbone's answers."""
        if self.written is None:
            return self.forward(backbone, head, batch)
        return find_answers(self.written, backbone, batch, self.options.answering)

    def collate_targets(self, examples: Sequence[Example]) -> Tensor | None:
        """Soft targets `(B, answers)` float32."""
        if any(example.target is None for example in examples):
            return None
        entries = [
            (row, column, value)
            for row, example in enumerate(examples)
            for column, value in example.target.scores.items()
        ]
        targets = torch.zeros(len(examples), len(self.answers))
        if entries:
            rows, columns, values = zip(*entries, strict=True)
            targets[list(rows), list(columns)] = torch.tensor(values)
        return targets

    def label_texts(self, targets: Tensor) -> Sequence[str]:
        """The answer with the highest target."""
        return [self.answers[index] for index in _likeliest(targets).tolist()]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy, mean × number of labels (ViLT, `compute_vqa`); of answers' tokens cross-entropy."""
        if self.written is not None:
            return self.written.loss(logits, _likeliest(targets))
        return functional.binary_cross_entropy_with_logits(logits, targets) * targets.shape[1]

    def predict(self, logits: Tensor, examples: Sequence[Example]) -> list[Prediction]:
        """The written or most probable answer, and its official soft accuracy in [0, 1] (None without annotations)."""
        predictions = []
        if self.written is not None and self.options.answering == "generation":
            answers = self.written.read(logits)
        else:
            answers = [self.answers[choice] for choice in logits.argmax(dim=-1).tolist()]
        for example, answer in zip(examples, answers, strict=True):
            target: VQATarget | None = example.target
            predictions.append(
                {
                    "id": example.id,
                    "group": example.group,
                    "question": example.text,
                    "answer": answer,
                    "answer_type": target.answer_type if target else None,
                    "score": soft_accuracy(answer, target.answers) if target else None,
                }
            )
        return predictions

    def write_submission(self, predictions: Sequence[Prediction], path: Path) -> None:
        """EvalAI's result file: `[{"question_id": int, "answer": str}]`, by question id."""
        results = [{"question_id": int(each["id"]), "answer": each["answer"]} for each in predictions]
        results.sort(key=lambda result: result["question_id"])
        write_atomically(path, json.dumps(results).encode())

    def _questions(
        self, root: Path, split: SplitColumns, answer_index: Mapping[str, int]
    ) -> tuple[Columns, np.ndarray | None]:
        """All questions of an official split, and the classes `(N, 10)` of the annotators' answers if it has any."""
        classes = split.classes(answer_index, self._raw) if split.annotated else None
        return _columns(root, split, classes), classes

    def _parts(self, root: Path, train: SplitColumns, other: SplitColumns) -> Parts:
        """Which official questions become train, val and test."""
        test_name, both = self.options.test, self.options.train == "trainval"
        if test_name == "auto":
            test_name = "test2015" if both or has_annotated_split(root, "test2015") else "val2014"
        if test_name != "val2014":
            annotated = has_annotated_split(root, test_name)
            test = load_split(root, test_name, annotated)
            part = "all" if annotated else "all, without annotations"
            trained: Parts = {"train": [_all(train)], "val": [_all(other)]}
            return {**(self._trainval(train, other) if both else trained), "test": [(test, part, None)]}
        images, image = np.unique(train.arrays["image_id"], return_inverse=True)
        held = cut_off(images.tolist(), self.options.val_fraction)
        validation = np.array([each in held for each in images.tolist()], dtype=bool)[image]
        share = f"of the images by hash, val_fraction={self.options.val_fraction}"
        return {
            "train": [(train, f"the rest {share}", ~validation)],
            "val": [(train, f"a part {share}", validation)],
            "test": [_all(other)],
        }

    def _trainval(self, train: SplitColumns, other: SplitColumns) -> Parts:
        """Both official splits as training data, and what the epoch is chosen on."""
        if self.options.holdout == "meter":
            seen = "all, which training has seen"
            return {"train": [_all(train), _all(other)], "val": [(other, seen, None)]}
        images, image = np.unique(other.arrays["image_id"], return_inverse=True)
        held = set(limited(images.tolist(), HELD_OUT, 0, str))
        validation = np.array([each in held for each in images.tolist()], dtype=bool)[image]
        return {
            "train": [_all(train), (other, f"but for {len(held)} images by hash", ~validation)],
            "val": [(other, f"{len(held)} images by hash", validation)],
        }

    def _vocabulary(self, root: Path, counted: Sequence[SplitColumns]) -> Vocabulary:
        if self.options.answers != "auto":
            return read_vocabulary(Path(self.options.answers))
        published = find_answer_file(root)
        if published is not None:
            return read_vocabulary(published)
        return count_vocabulary({split.name: split.majority_counts() for split in counted})


def _likeliest(targets: Tensor) -> Tensor:
    """The answer `(B,)` with the highest target, the first of several."""
    return targets.argmax(dim=1)


def _all(split: SplitColumns) -> Part:
    return split, "all", None


def majority_answer_accuracy(data: Data) -> float:
    """Accuracy on test, in percent, of always giving the answer that train's annotators gave most often."""
    counts = Counter(
        normalize_answer(text) for example in data.splits["train"] for _, text in example.target.answers
    )
    majority = min(counts, key=lambda answer: (-counts[answer], answer))
    scores = [soft_accuracy(majority, example.target.answers) for example in data.splits["test"]]
    return 100 * sum(scores) / len(scores)


def _columns(root: Path, split: SplitColumns, classes: np.ndarray | None) -> Columns:
    """The questions of a split as examples. classes: `(N, 10)` of the annotators' answers; None if unknown."""
    images, image = np.unique(split.arrays["image_id"], return_inverse=True)
    identifiers, groups = split.arrays["question_id"], split.arrays["image_id"]

    def target(row: int) -> VQATarget | None:
        if classes is None:
            return None
        answer_type = split.answer_types[int(split.arrays["answer_type"][row])]
        return VQATarget(soft_scores(classes[row]), split.given(row), answer_type)

    paths = [image_name(split.name, number) for number in images.tolist()]
    return Columns(Numbers(identifiers), split.texts, Numbers(groups), paths, image[:, None], root, target)
