"""Examples stored by column: compact in memory, and read from the cache folder in a moment."""

from __future__ import annotations

import bisect
import copy
import hashlib
import io
import json
import os
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np

from harness.digests.code import code_digest, reachable
from harness.errors import UserError
from harness.files import write_atomically
from harness.folders import cache_folder
from tasks.base import Example
from tasks.data.file_digests import digest_files

Arrays = Mapping[str, np.ndarray]


class Texts(Sequence[str]):
    """Base of sequences that make one text at a time."""

    @abstractmethod
    def _at(self, place: int) -> str:
        """The text at a place from 0 on, which exists."""

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self._at(index) for index in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self._at(place % len(self))

    def __iter__(self) -> Iterator[str]:
        return map(self._at, range(len(self)))


class Strings(Texts):
    """Texts in one array of UTF-8 bytes. offsets: `(N + 1,)` int64 where each text begins and ends."""

    def __init__(self, content: np.ndarray, offsets: np.ndarray) -> None:
        self.content = content
        self.offsets = offsets

    @classmethod
    def of(cls, texts: Iterable[str]) -> Strings:
        """Store texts."""
        encoded = [text.encode("utf-8") for text in texts]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)

    @classmethod
    def from_arrays(cls, arrays: Arrays, name: str) -> Strings:
        """What `arrays` stored under the name."""
        return cls(arrays[f"{name}.content"], arrays[f"{name}.offsets"])

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays to save under a name."""
        return {f"{name}.content": self.content, f"{name}.offsets": self.offsets}

    def _at(self, place: int) -> str:
        start, end = self.offsets[place], self.offsets[place + 1]
        return self.content[start:end].tobytes().decode("utf-8")

    def __len__(self) -> int:
        return len(self.offsets) - 1


class Numbers(Sequence[str]):
    """Integers `(N,)` as texts."""

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        found = self.numbers[place].tolist()
        return list(map(str, found)) if isinstance(place, slice) else str(found)

    def __len__(self) -> int:
        return len(self.numbers)


class Chained(Texts):
    """The texts of several sequences, one sequence after the other."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self._parts = parts
        self._starts = [0, *accumulate(map(len, parts))]

    def _at(self, place: int) -> str:
        part = bisect.bisect_right(self._starts, place) - 1
        return self._parts[part][place - self._starts[part]]

    def __len__(self) -> int:
        return self._starts[-1]


class Columns(Sequence[Example]):
    """Examples that are made when they are asked for.

    ids, texts, groups: of all examples stored.
    paths: distinct image paths relative to `root`. images: `(N, images per example)` indices into them.
    target: what is to be predicted of a stored example, by its index.
    rows: `(M,)` the stored examples that this sequence consists of, in order; None: all.
    """

    def __init__(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        groups: Sequence[str],
        paths: Sequence[str],
        images: np.ndarray,
        root: Path,
        target: Callable[[int], Any],
        rows: np.ndarray | None = None,
    ) -> None:
        self._ids, self._texts, self._groups = ids, texts, groups
        self._paths, self._images, self._root, self._target = paths, images, root, target
        self._made: dict[int, Path] = {}
        self.rows = np.arange(len(ids)) if rows is None else rows

    @classmethod
    def joined(cls, parts: Sequence[Columns]) -> Columns:
        """The examples of several sequences with the same root, one sequence after the other."""
        starts = [0, *accumulate(len(part._ids) for part in parts)]
        first_path = [0, *accumulate(len(part._paths) for part in parts)]

        def target(row: int) -> Any:
            part = bisect.bisect_right(starts, row) - 1
            return parts[part]._target(row - starts[part])

        return cls(
            Chained([part._ids for part in parts]),
            Chained([part._texts for part in parts]),
            Chained([part._groups for part in parts]),
            Chained([part._paths for part in parts]),
            np.concatenate([part._images + first for part, first in zip(parts, first_path, strict=False)]),
            parts[0]._root,
            target,
            np.concatenate([part.rows + start for part, start in zip(parts, starts, strict=False)]),
        )

    def take(self, places: np.ndarray) -> Columns:
        """Some of the examples, by their places in this sequence."""
        made = copy.copy(self)
        made.rows = self.rows[places]
        return made

    @property
    def texts(self) -> list[str]:
        """The text of each example."""
        return [self._texts[row] for row in self.rows.tolist()]

    @property
    def groups(self) -> list[str]:
        """The group of each example."""
        return [self._groups[row] for row in self.rows.tolist()]

    @property
    def image_table(self) -> tuple[list[str], np.ndarray]:
        """The distinct images of the examples, and the place of each example's among them."""
        used, places = np.unique(self._images[self.rows], return_inverse=True)
        folder = os.path.join(self._root, "")  # noqa: PTH118 - with a separator at its end
        chosen = map(self._paths.__getitem__, used.tolist())
        # What os.path.join does, which takes four times as long.
        paths = [path if path.startswith(os.sep) else folder + path for path in chosen]
        return paths, places.reshape(self._images[self.rows].shape)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> list[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        if isinstance(place, slice):
            return [self._example(row) for row in self.rows[place].tolist()]
        return self._example(int(self.rows[place]))

    def __iter__(self) -> Iterator[Example]:
        return map(self._example, self.rows.tolist())

    def _path(self, index: int) -> Path:
        if index not in self._made:
            self._made[index] = self._root / self._paths[index]
        return self._made[index]

    def _example(self, row: int) -> Example:
        images = tuple(self._path(index) for index in self._images[row].tolist())
        return Example(self._ids[row], self._texts[row], images, self._target(row), self._groups[row])


def image_paths(examples: Sequence[Example]) -> list[str]:
    """The distinct images of some examples."""
    return image_table(examples)[0]


def image_table(examples: Sequence[Example]) -> tuple[list[str], np.ndarray]:
    """The distinct images of some examples, and the place `(N, images per example)` of each example's among them."""
    if isinstance(examples, Columns):
        return examples.image_table
    places: dict[str, int] = {}
    images = [
        [places.setdefault(os.fspath(path), len(places)) for path in example.images] for example in examples
    ]
    return list(places), np.array(images, dtype=np.int64).reshape(len(examples), -1 if images else 0)


def texts_of(examples: Sequence[Example]) -> list[str]:
    """The text of each example."""
    return examples.texts if isinstance(examples, Columns) else [example.text for example in examples]


def groups_of(examples: Sequence[Example]) -> list[str]:
    """The group of each example."""
    return examples.groups if isinstance(examples, Columns) else [example.group for example in examples]


def number_distinct(texts: Iterable[str]) -> tuple[list[str], np.ndarray]:
    """The distinct texts in the order in which they first occur, and the place `(N,)` int32 of each text among them."""
    places: dict[str, int] = {}
    rows = [places.setdefault(text, len(places)) for text in texts]
    return list(places), np.array(rows, dtype=np.int32)


def parsed(
    files: Sequence[Path], settings: Sequence[Any], parsers: Sequence[object], make: Callable[[], Arrays]
) -> tuple[dict[str, str], Arrays]:
    """SHA-256 (hex) of official files by name, and what `make` reads from them, which is kept in the cache folder.

    settings: JSON values that decide the arrays beside the files' bytes.
    parsers: the functions that do so; if their code changes, the files are read again.

    Raises:
        UserError: a file cannot be read.
    """
    digests: dict[str, str] = {}
    for path, digest in digest_files(files).items():
        if digest is None:
            raise UserError(f"{path}: cannot be read.")
        digests[path.name] = digest
    code = code_digest(reachable(parsers, ["harness"]))
    return digests, kept_arrays([*settings, list(digests.items()), code], make)


def kept_arrays(key: Sequence[Any], make: Callable[[], Arrays]) -> Arrays:
    """Arrays that were made before for the same key, from the cache folder; else they are made and kept there.

    key: JSON values that decide the arrays, such as digests of files and versions of code.
    """
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    try:
        path = cache_folder() / "parsed" / f"{name}.npz"
    except UserError:  # no cache folder: it costs time only
        return make()
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            return {column: saved[column] for column in saved.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # missing or damaged
        pass
    arrays = make()
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    with suppress(UserError):  # a full or read-only cache
        write_atomically(path, content.getvalue())
    return arrays
