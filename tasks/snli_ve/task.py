"""SNLI-VE: does a photograph entail a hypothesis, contradict it, or neither?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tasks.base import Example, Prediction, Recipe, SplitName
from tasks.classification.columns import load_part
from tasks.classification.task import Classification, Label, Part
from tasks.data.subsets import Limits
from tasks.mini.snli_ve import ensure_snli_ve
from tasks.scorer import Scorer
from tasks.snli_ve.files import LABELS, image_folder, read_pairs, split_file, write_predictions
from tasks.snli_ve.scorer import SCORER


@dataclass(frozen=True)
class SNLIVEOptions(Limits):
    """Options of SNLI-VE: the limits."""


class SNLIVE(Classification[SNLIVEOptions]):
    """SNLI-VE with the image as the premise; the model reads the hypothesis alone."""

    name: ClassVar[str] = "snli_ve"
    title: ClassVar[str] = "SNLI-VE"
    version: ClassVar[int] = 1
    scorer: ClassVar[Scorer] = SCORER
    Options: ClassVar[type[Any]] = SNLIVEOptions
    recipe: ClassVar[Recipe] = Recipe(epochs=5, batch_size=64)
    embedded_recipe: ClassVar[Recipe] = Recipe(epochs=4, batch_size=16)
    classes: ClassVar[tuple[str, ...]] = LABELS

    def embedded_data(self, cache: Path) -> Path:
        """The mini benchmark's pictures and hypotheses, in SNLI-VE's formats."""
        return ensure_snli_ve(cache)

    def read_parts(self, root: Path) -> dict[SplitName, Part]:
        """train, dev for validation, and test."""
        official: dict[SplitName, str] = {"train": "train", "val": "dev", "test": "test"}
        return {split: _part(root, name) for split, name in official.items()}

    def write_submission(self, predictions: Sequence[Prediction], path: Path) -> None:
        """JSON lines with `pairID` and `prediction`."""
        write_predictions(((each["id"], each["prediction"]) for each in predictions), path)


def _part(root: Path, name: str) -> Part:
    path = split_file(root, name)
    return load_part(image_folder(root), [path], lambda: _read(path, name))


def _read(path: Path, name: str) -> Part:
    """A split, with the names of its images for their paths."""
    found = read_pairs(path)
    examples = [
        Example(
            pair.id,
            pair.hypothesis,
            (Path(f"{pair.image}.jpg"),),
            Label(LABELS.index(pair.label)),
            pair.image,
        )
        for pair in found.pairs
    ]
    notes = {"left out, no gold label": found.undecided}
    return Part(name, "all", examples, {found.path.name: found.digest}, notes)
