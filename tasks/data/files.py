"""Find and read official files, plain or gzipped, with their digests; errors name file and position."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harness import files
from harness.errors import UserError
from harness.files import Line
from tasks.data.file_digests import digest_files

if TYPE_CHECKING:
    from tasks.base import SplitName

_KINDS: Mapping[type, str] = {int: "an integer", str: "a string", list: "a list"}


_LONGEST_LINK = 4096
"""Longest path, in bytes."""


Value = TypeVar("Value", int, str, list[Any])


def find_file(root: Path, *names: str) -> Path | None:
    """The first of `names` that is a file under `root`, plain or gzipped; None if there is none."""
    candidates = (root / f"{name}{suffix}" for name in names for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def require_file(root: Path, *names: str) -> Path:
    """As `find_file`, but raises `UserError` listing the names if there is none."""
    path = find_file(root, *names)
    if path is None:
        missing = "" if root.is_dir() else " (no such folder)"
        looked_for = " and ".join(f"{name}, {name}.gz" for name in names)
        raise UserError(f"{root}{missing}: looked for {looked_for}, found none of them")
    return path


def read_json(path: Path) -> tuple[Any, str]:
    """Content of a JSON file, and the SHA-256 (hex) of its bytes on disk. See `harness.files.read_json`."""
    content = files.read_json(path)
    _report(path, content.replaced)
    return content.value, content.digest


def read_json_lines(path: Path) -> tuple[list[Line], str]:
    """Values of a JSON-lines file with their positions, and the file's digest; blank lines are skipped.

    Raises `UserError` naming file and line, also if the file has no values.
    """
    content = files.read_json_lines(path)
    if not content.value:
        raise UserError(f"{path}: is empty")
    _report(path, content.replaced)
    return content.value, content.digest


def _report(path: Path, replaced: int) -> None:
    """Say on standard error how many characters of a file were replaced."""
    if replaced:
        what = "1 lone surrogate was" if replaced == 1 else f"{replaced:,} lone surrogates were"
        print(f"harness: {path}: {what} read as U+FFFD", file=sys.stderr)


def field(entry: Any, key: str, kind: type[Value], place: str) -> Value:
    """`entry[key]`, which must be of type `kind`. Raises `UserError` naming `place`."""
    if not isinstance(entry, dict):
        raise UserError(f"{place}: expected an object with '{key}', not {shortened(entry)}")
    if key not in entry:
        raise UserError(f"{place}: missing key '{key}'")
    value = entry[key]
    if type(value) is not kind:  # JSON's true is an int to isinstance
        raise UserError(f"{place}: '{key}' must be {_KINDS[kind]}, not {shortened(value)}")
    return value


def shortened(value: Any) -> str:
    """A JSON value for messages, cut to 40 characters."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def follow_link(folder: Path) -> Path:
    """`folder`, or its target if it is a symbolic link that git checked out as a text file."""
    if folder.is_file() and folder.stat().st_size < _LONGEST_LINK:
        target = folder.parent / files.read_text(folder).value.strip()
        if target.is_dir():
            return target
    return folder


def describe_images(images: Mapping[SplitName, Sequence[str]]) -> dict[SplitName, dict[str, Any]]:
    """By split: number of images, how many are missing or unreadable, and SHA-256 (hex) of all names and bytes.

    images: paths of each split's images.
    """
    digests = digest_files(dict.fromkeys(path for paths in images.values() for path in paths))
    return {split: _describe({path: digests[path] for path in paths}) for split, paths in images.items()}


def _describe(digests: Mapping[str, str | None]) -> dict[str, Any]:
    listing = sorted(
        ((path.rpartition(os.sep)[2], digest) for path, digest in digests.items()),
        key=lambda each: (each[0], each[1] or ""),
    )
    return {
        "images": len(listing),
        "images missing": sum(digest is None for _, digest in listing),
        "image digest": hashlib.sha256(json.dumps(listing).encode()).hexdigest(),
    }
