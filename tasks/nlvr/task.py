"""NLVR, the first corpus: is a sentence written by a person true of a drawing of three boxes?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from tasks.base import Example, Prediction, Recipe, SplitName
from tasks.classification.task import Classification, Label, Part
from tasks.data.files import find_file
from tasks.data.subsets import Limits, cut_off
from tasks.nlvr.files import Images, OfficialSplit, Statement, image_ids, read_split, sentence_of
from tasks.nlvr.scorer import SCORER
from tasks.nlvr2.files import LABELS, write_predictions
from tasks.scorer import Scorer


@dataclass(frozen=True)
class NLVROptions(Limits):
    """Options of NLVR. The limits count images, of which a statement has six.

    train: official split to train on. "auto": train if its file exists, else dev. With train, validation is dev;
        with dev, some of its sentences are held out for validation.
    val_fraction: share of dev's sentences that is held out.
    test: official split to report on: the public test split, or `hidden`, the one that was unreleased at first.
    """

    train: Literal["auto", "train", "dev"] = "auto"
    val_fraction: float = 0.1
    test: Literal["test", "hidden"] = "test"

    def __post_init__(self) -> None:
        Limits.__post_init__(self)
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, not {self.val_fraction}")


class NLVR(Classification[NLVROptions]):
    """NLVR with its images (not the structured representation); each image is one example."""

    name: ClassVar[str] = "nlvr"
    title: ClassVar[str] = "NLVR"
    version: ClassVar[int] = 1
    scorer: ClassVar[Scorer] = SCORER
    Options: ClassVar[type[Any]] = NLVROptions
    recipe: ClassVar[Recipe] = Recipe(epochs=10, batch_size=128)
    """That of NLVR2, as ViLT, METER and DAS do not report NLVR."""
    classes: ClassVar[tuple[str, ...]] = LABELS
    official_splits: ClassVar[tuple[str, ...]] = ("hidden",)
    later_options: ClassVar[tuple[str, ...]] = ("test",)

    def read_parts(self, root: Path) -> dict[SplitName, Part]:
        """train, dev and the test split; without train, dev is divided in two."""
        dev, test = read_split(root, "dev"), read_split(root, self.options.test)
        train = self.options.train
        if train == "auto":
            train = "train" if find_file(root, "train/train.json", "train.json") else "dev"
        if train == "train":
            parts = {"train": _part(root, read_split(root, "train")), "val": _part(root, dev)}
        else:
            parts = self._cut(root, dev)
        return {"train": parts["train"], "val": parts["val"], "test": _part(root, test)}

    def read_official(self, root: Path, split: str) -> Sequence[Example]:
        """All examples of the hidden split."""
        return _part(root, read_split(root, split)).examples

    def write_submission(self, predictions: Sequence[Prediction], path: Path) -> None:
        """The official script's CSV: `{image}.png,{label}`, labels in lower case as in the corpus."""
        write_predictions(((f"{each['id']}.png", each["prediction"].lower()) for each in predictions), path)

    def _cut(self, root: Path, dev: OfficialSplit) -> dict[str, Part]:
        fraction = self.options.val_fraction
        held = cut_off({_sentence(dev, statement) for statement in dev.statements}, fraction)
        share = f"of the sentences by hash, val_fraction={fraction}"
        return {
            "train": _part(root, dev, f"the rest {share}", lambda sentence: sentence not in held),
            "val": _part(root, dev, f"a part {share}", lambda sentence: sentence in held),
        }


def _sentence(split: OfficialSplit, statement: Statement) -> str:
    return sentence_of(f"{split.name}-{statement.id}")


def _part(
    root: Path, split: OfficialSplit, part: str = "all", takes: Callable[[str], bool] = lambda sentence: True
) -> Part:
    images = Images(root, split.name)
    examples = [
        Example(
            image_id,
            statement.sentence,
            (images.path(statement, image_id),),
            Label(LABELS.index(statement.label)),
            _sentence(split, statement),
        )
        for statement in split.statements
        if takes(_sentence(split, statement))
        for image_id in image_ids(split.name, statement.id)
    ]
    return Part(split.name, part, examples, split.files, {})
