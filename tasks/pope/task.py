"""POPE: is an object in a photograph?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from tasks.answers import Answering
from tasks.base import Example, Prediction, Recipe, SplitName
from tasks.classification.task import Classification, Label, Part
from tasks.data.subsets import Limits
from tasks.mini.pope import ensure_pope
from tasks.pope.files import (
    CATEGORIES,
    LABELS,
    QuestionFile,
    read_answer,
    read_category,
    read_training,
    write_answers,
)
from tasks.pope.scorer import SCORER
from tasks.scorer import Scorer


@dataclass(frozen=True)
class POPEOptions(Limits):
    """Options of POPE beside the limits.

    test: the category of questions to report on; "all" for the three together.
    answering: on generative backbones, answers are written and read by the official rule, or the likelier of "yes"
        and "no" is taken.
    """

    test: Literal["all", "random", "popular", "adversarial"] = "all"
    answering: Answering = "generation"


class POPE(Classification[POPEOptions]):
    """POPE: hallucinated objects. Its test questions are official, those for training are the user's."""

    name: ClassVar[str] = "pope"
    title: ClassVar[str] = "POPE"
    version: ClassVar[int] = 1
    scorer: ClassVar[Scorer] = SCORER
    Options: ClassVar[type[Any]] = POPEOptions
    recipe: ClassVar[Recipe] = Recipe(epochs=1, batch_size=128)
    embedded_recipe: ClassVar[Recipe] = Recipe(epochs=4, batch_size=16)
    classes: ClassVar[tuple[str, ...]] = LABELS
    answer_length: ClassVar[int] = 10

    def embedded_data(self, cache: Path) -> Path:
        """The mini benchmark's pictures and questions, in POPE's format."""
        return ensure_pope(cache)

    def read_parts(self, root: Path) -> dict[SplitName, Part]:
        """Training and validation questions, and the official test questions."""
        chosen = CATEGORIES if self.options.test == "all" else (self.options.test,)
        tests = [read_category(root, category) for category in chosen]
        return {
            "train": _part(root, "train", [read_training(root, "train")]),
            "val": _part(root, "val", [read_training(root, "val")]),
            "test": _part(root, "+".join(chosen), tests),
        }

    def class_of(self, text: str) -> int | None:
        """By the official rule."""
        return LABELS.index(read_answer(text))

    def write_submission(self, predictions: Sequence[Prediction], path: Path) -> None:
        """JSON lines with `question_id`, `question` and `answer`."""
        write_answers(((each["id"], each["text"], each["prediction"]) for each in predictions), path)


def _part(root: Path, name: str, files: Sequence[QuestionFile]) -> Part:
    examples = [
        Example(each.id, each.text, (root / each.image,), Label(LABELS.index(each.label)), each.image)
        for file in files
        for each in file.questions
    ]
    return Part(name, "all", examples, {file.path.name: file.digest for file in files}, {})
