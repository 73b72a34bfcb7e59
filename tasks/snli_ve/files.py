"""SNLI-VE's official files (github.com/necla-ml/SNLI-VE): hypotheses about Flickr30k photographs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.files import write_atomically
from tasks.data.files import field, follow_link, read_json_lines, require_file

LABELS = ("contradiction", "neutral", "entailment")
"""By class index, as in METER."""


NO_CONSENSUS = "-"
"""SNLI's gold label if the annotators did not agree; published figures leave such pairs out."""


IMAGE_FOLDERS = ("flickr30k_images", "flickr30k-images")


@dataclass(frozen=True, slots=True)
class Pair:
    """A photograph as the premise, and a hypothesis about it."""

    id: str
    hypothesis: str
    label: str
    image: str


@dataclass(frozen=True)
class PairFile:
    """The pairs of one file in its order. undecided: number of pairs left out because they have no gold label."""

    path: Path
    pairs: tuple[Pair, ...]
    undecided: int
    digest: str


def split_file(root: Path, name: str) -> Path:
    """The file of a split (train, dev, test). Raises `UserError` if it is missing."""
    return require_file(root, f"snli_ve_{name}.jsonl")


def read_pairs(path: Path) -> PairFile:
    """The pairs of one file. The premise's sentence is not read, as the image replaces it."""
    lines, digest = read_json_lines(path)
    pairs: dict[str, Pair] = {}
    undecided = 0
    for place, entry in lines:
        label = field(entry, "gold_label", str, place)
        if label == NO_CONSENSUS:
            undecided += 1
            continue
        identifier = field(entry, "pairID", str, place)
        if identifier in pairs:
            raise UserError(f"{place}: pairID '{identifier}' appears twice")
        pairs[identifier] = Pair(
            identifier,
            field(entry, "sentence2", str, place),
            check_label(label, place),
            field(entry, "Flickr30K_ID", str, place),
        )
    return PairFile(path, tuple(pairs.values()), undecided, digest)


def check_label(label: str, place: str) -> str:
    """`label`. Raises `UserError` unless it is one of the three."""
    if label not in LABELS:
        raise UserError(f"{place}: a label is one of {', '.join(LABELS)}; not '{label}'")
    return label


def image_folder(root: Path) -> Path:
    """The folder of Flickr30k's images; the first of the two usual names if neither exists."""
    folders = [follow_link(root / name) for name in IMAGE_FOLDERS]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def write_predictions(answers: Iterable[tuple[str, str]], path: Path) -> None:
    """JSON lines `{"pairID": …, "prediction": …}`, sorted. SNLI-VE has neither a server nor a format for this."""
    lines = [json.dumps({"pairID": pair, "prediction": label}) for pair, label in sorted(answers)]
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
