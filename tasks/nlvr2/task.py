"""NLVR2: is a sentence true of a pair of photographs?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from tasks.base import Example, Prediction, Recipe, SplitName
from tasks.classification.columns import load_part
from tasks.classification.task import Classification, Label, Part
from tasks.data.subsets import Limits
from tasks.mini.nlvr2 import ensure_nlvr2
from tasks.nlvr2.files import (
    LABELS,
    OfficialSplit,
    image_folder,
    image_paths,
    read_split,
    split_files,
    write_predictions,
)
from tasks.nlvr2.scorer import SCORER
from tasks.scorer import Scorer


@dataclass(frozen=True)
class NLVR2Options(Limits):
    """Options of NLVR2.

    test: official split to report on; test1 is the public test split (Test-P).
    """

    test: Literal["test1", "test2"] = "test1"


class NLVR2(Classification[NLVR2Options]):
    """NLVR2 as ViLT and METER run it: one pass per image, both features into one head."""

    name: ClassVar[str] = "nlvr2"
    title: ClassVar[str] = "NLVR2"
    version: ClassVar[int] = 1
    scorer: ClassVar[Scorer] = SCORER
    Options: ClassVar[type[Any]] = NLVR2Options
    recipe: ClassVar[Recipe] = Recipe(epochs=10, batch_size=128)
    embedded_recipe: ClassVar[Recipe] = Recipe(epochs=2, batch_size=16)
    classes: ClassVar[tuple[str, ...]] = LABELS
    images_per_example: ClassVar[int] = 2
    official_splits: ClassVar[tuple[str, ...]] = ("test1", "test2")

    def embedded_data(self, cache: Path) -> Path:
        """The mini benchmark's pairs of pictures and sentences, in NLVR2's formats."""
        return ensure_nlvr2(cache)

    def read_parts(self, root: Path) -> dict[SplitName, Part]:
        """train, dev for validation, and the public test split."""
        official: dict[SplitName, str] = {"train": "train", "val": "dev", "test": self.options.test}
        return {split: _part(root, name) for split, name in official.items()}

    def read_official(self, root: Path, split: str) -> Sequence[Example]:
        """All examples of a test split."""
        return _part(root, split).examples

    def write_submission(self, predictions: Sequence[Prediction], path: Path) -> None:
        """The official script's CSV: `identifier,prediction`."""
        write_predictions(((each["id"], each["prediction"]) for each in predictions), path)


def _part(root: Path, name: str) -> Part:
    files = list(split_files(root, name).values())
    return load_part(image_folder(root, name), files, lambda: _read(read_split(root, name)))


def _read(split: OfficialSplit) -> Part:
    """A split, with the paths of its images in their folder."""
    examples = [
        Example(
            statement.id,
            statement.sentence,
            image_paths(statement),
            Label(
                LABELS.index(statement.label),
                tuple(name for name, members in split.subsets.items() if statement.id in members),
            ),
            statement.image_set,
        )
        for statement in split.statements
    ]
    sizes = {name: len(members) for name, members in split.subsets.items()}
    return Part(split.name, "all", examples, split.files, {"subsets": sizes} if sizes else {})
