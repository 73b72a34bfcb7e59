"""NLVR2's official files: examples, image names, the balanced and unbalanced subsets, prediction files.

Labels are laid out as in github.com/lil-lab/nlvr (`nlvr2/data`), photographs as in its image archive.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.files import read_csv, write_atomically
from tasks.data.files import field, find_file, read_json_lines, require_file

FOLDERS = ("", "nlvr2/data/", "data/")
"""Where under the data folder the JSON files may be: beside the images, or in a clone of the repository."""


SUBSETS = ("balanced", "unbalanced")


LABELS = ("False", "True")
"""By class index."""


_LABEL_OF = {label.lower(): label for label in LABELS}


@dataclass(frozen=True, slots=True)
class Statement:
    """One example: a sentence about a pair of images.

    id: `{split}-{image set}-{pair}-{sentence}`.
    directory: folder of a training image in the image archive; None for the other splits.
    """

    id: str
    sentence: str
    label: str
    directory: str | None

    @property
    def image_set(self) -> str:
        """The set of eight images from which the pair was taken; other pairs and sentences share it."""
        return "-".join(self.id.split("-")[:2])


@dataclass(frozen=True)
class OfficialSplit:
    """One split in the file's order.

    subsets: identifiers of each official subset whose file exists.
    files: SHA-256 (hex) by file name.
    """

    name: str
    statements: tuple[Statement, ...]
    subsets: Mapping[str, frozenset[str]]
    files: Mapping[str, str]


def split_files(root: Path, name: str) -> dict[str, Path]:
    """The file of a split under the key "all", and that of each official subset that exists, by its name.

    Raises `UserError` if there is no file of the split.
    """
    files = {"all": require_file(root, *(f"{folder}{name}.json" for folder in FOLDERS))}
    for subset in SUBSETS:
        names = (f"{folder}{subset}/{subset}_{name}.json" for folder in FOLDERS)
        path = find_file(root, *names, f"{subset}_{name}.json")
        if path is not None:
            files[subset] = path
    return files


def read_split(root: Path, name: str) -> OfficialSplit:
    """A split and its subsets. Raises `UserError` naming the file and place at fault."""
    paths = split_files(root, name)
    path = paths.pop("all")
    statements, digest = read_statements(path)
    files = {path.name: digest}
    subsets: dict[str, frozenset[str]] = {}
    for subset, subset_path in paths.items():
        members, files[subset_path.name] = read_statements(subset_path)
        if unknown := sorted(members.keys() - statements.keys()):
            raise UserError(f"{subset_path}: '{unknown[0]}' is not in {path}")
        subsets[subset] = frozenset(members)
    return OfficialSplit(name, tuple(statements.values()), subsets, files)


def read_statements(path: Path) -> tuple[dict[str, Statement], str]:
    """The statements of one file by identifier, and the file's SHA-256 (hex)."""
    lines, digest = read_json_lines(path)
    statements: dict[str, Statement] = {}
    for place, entry in lines:
        identifier = field(entry, "identifier", str, place)
        if len(identifier.split("-")) != 4:
            raise UserError(
                f"{place}: an identifier has four parts, split-set-pair-sentence; not '{identifier}'"
            )
        if identifier in statements:
            raise UserError(f"{place}: '{identifier}' appears twice")
        label = parse_label(field(entry, "label", str, place), place)
        directory = str(entry["directory"]) if "directory" in entry else None
        statements[identifier] = Statement(identifier, field(entry, "sentence", str, place), label, directory)
    return statements, digest


def parse_label(text: str, place: str) -> str:
    """`True` or `False`; case and spaces are ignored, as in the official script."""
    label = _LABEL_OF.get(text.strip().lower())
    if label is None:
        raise UserError(f"{place}: a label is True or False, not '{text}'")
    return label


def image_folder(root: Path, split: str) -> Path:
    """`images/{split}`, or `{split}` if only that exists (the archive unpacks to `images/train`, `dev`, `test1`)."""
    nested = root / "images" / split
    return nested if nested.is_dir() or not (root / split).is_dir() else root / split


def image_paths(statement: Statement) -> tuple[Path, Path]:
    """The left and the right image in the split's folder.

    `{identifier without its last field}-img0.png` and `-img1.png`, of training images in a folder of their own.
    """
    pair = statement.id.rpartition("-")[0]
    place = Path(statement.directory or "")
    return place / f"{pair}-img0.png", place / f"{pair}-img1.png"


def consistency_group(identifier: str) -> str:
    """The group of examples with the same sentence and image set: their ids differ in the third field only."""
    fields = identifier.split("-")
    return "-".join((*fields[:2], "", *fields[3:]))


def write_predictions(answers: Iterable[tuple[str, str]], path: Path) -> None:
    """The CSV that the official script reads: `identifier,prediction`, sorted, without a header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(sorted(answers))
    write_atomically(path, text.getvalue().encode())


def read_predictions(path: Path) -> dict[str, str]:
    """Labels by identifier from such a CSV. Raises `UserError` naming the line at fault."""
    answers: dict[str, str] = {}
    for place, row in read_csv(path).value:
        if len(row) != 2:
            raise UserError(f"{place}: expected identifier,prediction, not {len(row)} columns")
        identifier = row[0].strip()
        if identifier in answers:
            raise UserError(f"{place}: '{identifier}' appears twice")
        answers[identifier] = parse_label(row[1], place)
    return answers
