"""The first NLVR corpus (github.com/lil-lab/nlvr, folder `nlvr`): statements, image names, prediction files.

A statement is a sentence about three boxes; its six images show the boxes in their six orders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from tasks.data.files import field, read_json_lines, require_file
from tasks.nlvr2.files import parse_label
from tasks.nlvr2.files import read_predictions as read_csv

ORDERS = 6
"""Images of a statement."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement. id: `{sentence}-{boxes}`. label: of all its six images. directory: theirs; None: not given."""

    id: str
    sentence: str
    label: str
    directory: str | None


@dataclass(frozen=True)
class OfficialSplit:
    """One split in the file's order; `files` maps file names to SHA-256 (hex)."""

    name: str
    statements: tuple[Statement, ...]
    files: Mapping[str, str]


def read_split(root: Path, name: str) -> OfficialSplit:
    """A split by name (train, dev, test, hidden). Raises `UserError` naming the file and place at fault."""
    names = [f"{name}.json", *(["hidden_final.json"] if name == "hidden" else [])]
    path = require_file(root, *(f"{name}/{each}" for each in names), *names)
    statements, digest = read_statements(path)
    return OfficialSplit(name, tuple(statements.values()), {path.name: digest})


def read_statements(path: Path) -> tuple[dict[str, Statement], str]:
    """The statements of one file by identifier, and the file's SHA-256 (hex)."""
    lines, digest = read_json_lines(path)
    statements: dict[str, Statement] = {}
    for place, entry in lines:
        identifier = field(entry, "identifier", str, place)
        if len(identifier.split("-")) != 2:
            raise UserError(f"{place}: an identifier has two parts, sentence-boxes; not '{identifier}'")
        if identifier in statements:
            raise UserError(f"{place}: '{identifier}' appears twice")
        statements[identifier] = Statement(
            identifier,
            field(entry, "sentence", str, place),
            parse_label(field(entry, "label", str, place), place),
            field(entry, "directory", str, place) if "directory" in entry else None,
        )
    return statements, digest


def image_ids(split: str, statement_id: str) -> list[str]:
    """Names of a statement's images without extension: `{split}-{identifier}-{order}`."""
    return [f"{split}-{statement_id}-{order}" for order in range(ORDERS)]


class Images:
    """Where the images of a split are: `{split}/images/{directory}/{split}-{identifier}-{order}.png`.

    The hidden split's statements do not say the directory, and the images of a few are in several ones. So an image
    that is not where its statement says is looked up by its name.
    """

    def __init__(self, root: Path, split: str) -> None:
        self._folder = root / split / "images"
        self._found: dict[str, Path] = {}
        self._all: set[Path] = set()
        for path in sorted(self._folder.glob("*/*")):
            self._found.setdefault(path.name, path)
            self._all.add(path)

    def path(self, statement: Statement, image_id: str) -> Path:
        """The image's path; if there is no such image, where it should be."""
        name = f"{image_id}.png"
        stated = self._folder / (statement.directory or "") / name
        return stated if stated in self._all else self._found.get(name, stated)


def sentence_of(image_id: str) -> str:
    """The group of images with the same sentence: split and first field of the identifier."""
    return "-".join(image_id.split("-")[:2])


def boxes_of(image_id: str) -> str:
    """The group of the six orders of the same boxes: the id without the order."""
    return image_id.rpartition("-")[0]


def read_predictions(path: Path) -> dict[str, str]:
    """Labels by image id, from the CSV `{image id}.png,label` that the official script reads."""
    return {name.removesuffix(".png"): label for name, label in read_csv(path).items()}
