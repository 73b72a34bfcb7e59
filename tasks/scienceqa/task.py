"""ScienceQA: school questions with two to five options, some with a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from tasks.answers import Answering
from tasks.base import Example, Prediction, Recipe, SplitName
from tasks.classification.task import Classification, Label, Part
from tasks.data.files import require_file
from tasks.data.images import BLANK_IMAGE
from tasks.data.subsets import Limits
from tasks.mini.scienceqa import ensure_scienceqa
from tasks.scienceqa.files import (
    LETTERS,
    image_file,
    problems_of,
    read_problems,
    read_splits,
    write_results,
)
from tasks.scienceqa.scorer import SCORER
from tasks.scorer import Scorer

_LETTER = re.compile(r"\(?([A-Ea-e])\)?(?:[.:\s]|$)")


@dataclass(frozen=True, slots=True)
class Option(Label):
    """The right option, and how many there are."""

    options: int = len(LETTERS)


@dataclass(frozen=True)
class ScienceQAOptions(Limits):
    """Options of ScienceQA beside the limits.

    answering: on generative backbones, the option's letter is written, or the most likely letter is taken.
    """

    answering: Answering = "generation"


class ScienceQA(Classification[ScienceQAOptions]):
    """ScienceQA without its lectures and solutions; questions without a picture get a mid-grey one."""

    name: ClassVar[str] = "scienceqa"
    title: ClassVar[str] = "ScienceQA"
    version: ClassVar[int] = 1
    scorer: ClassVar[Scorer] = SCORER
    Options: ClassVar[type[Any]] = ScienceQAOptions
    recipe: ClassVar[Recipe] = Recipe(epochs=20, batch_size=32)
    embedded_recipe: ClassVar[Recipe] = Recipe(epochs=4, batch_size=16)
    classes: ClassVar[tuple[str, ...]] = LETTERS
    answer_length: ClassVar[int] = 4

    def embedded_data(self, cache: Path) -> Path:
        """The mini benchmark's pictures and questions, in ScienceQA's format."""
        return ensure_scienceqa(cache)

    def read_parts(self, root: Path) -> dict[SplitName, Part]:
        """The official splits train, val and test."""
        path = require_file(root, "problems.json")
        problems, digest = read_problems(path)
        splits, files = read_splits(root)
        parts: dict[SplitName, Part] = {}
        names: tuple[SplitName, ...] = ("train", "val", "test")
        for name in names:
            chosen = problems_of(splits[name], problems, f"pid_splits.json: {name}")
            examples = [
                Example(
                    each.id,
                    each.prompt,
                    (BLANK_IMAGE if each.image is None else image_file(root, each),),
                    Option(each.answer, each.subsets, len(each.choices)),
                    each.id,
                )
                for each in chosen
            ]
            parts[name] = Part(name, "all", examples, {path.name: digest, **files}, {})
        return parts

    def choices(
        self, logits: Tensor, examples: Sequence[Example], texts: Sequence[str] | None = None
    ) -> list[int | None]:
        """As for other tasks, but never an option that a question does not have."""
        counts = [cast(Option, example.target).options for example in examples]
        if texts is not None:
            found = super().choices(logits, examples, texts)
            return [
                None if choice is None or choice >= count else choice
                for choice, count in zip(found, counts, strict=True)
            ]
        beyond = torch.arange(logits.shape[1]) >= torch.tensor(counts)[:, None]
        return list(logits.masked_fill(beyond, -torch.inf).argmax(dim=-1).tolist())

    def class_of(self, text: str) -> int | None:
        """The letter that an answer begins with, in parentheses or not; also behind "The answer is"."""
        match = _LETTER.match(re.sub(r"^the answer is\s*", "", text.strip(), flags=re.IGNORECASE))
        return None if match is None else LETTERS.index(match[1].upper())

    def write_submission(self, predictions: Sequence[Prediction], path: Path) -> None:
        """`{"results": {id: index of the option}}`."""
        chosen = ((each["id"], each["prediction"]) for each in predictions)
        write_results(((i, None if letter is None else LETTERS.index(letter)) for i, letter in chosen), path)
