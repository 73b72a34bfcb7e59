"""Folders of generated files: named by what is in them, complete or absent, the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from harness.errors import UserError

FINISHED = "mini.json"
"""Written last: version, seed and sizes of what lies beside it."""

SizesT = TypeVar("SizesT", bound=Any)  # a dataclass


@dataclass(frozen=True)
class Generation(Generic[SizesT]):
    """One data set of the embedded benchmark.

    task: its name in the folder's.
    version: to be raised with every change that changes a file.
    write: puts all files but `FINISHED` into an empty folder, given seed and sizes; the same arguments give
        the same bytes (pictures: with the same Pillow).
    """

    task: str
    version: int
    write: Callable[[Path, int, SizesT], None]

    def ensure(self, cache_root: Path, seed: int, sizes: SizesT) -> Path:
        """The folder with the files, generated under `cache_root` if it is not there yet.

        Its name tells version, seed and sizes apart. Two processes may ask at once: both generate the same
        bytes, one folder stays. Raises `UserError` if something unfinished is in its place.
        """
        content = json.dumps([self.version, asdict(sizes)], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        root = cache_root / f"mini-{self.task}-v{self.version}-seed{seed}-{digest}"
        if not root.exists():
            with suppress(FileExistsError):  # another process was faster
                self.make(root, seed, sizes)
        if not (root / FINISHED).is_file():
            raise UserError(
                f"{root} has no {FINISHED}, so it is not a finished generation: delete the folder and retry."
            )
        return root

    def make(self, root: Path, seed: int, sizes: SizesT) -> None:
        """Generates the new folder `root`. Raises `FileExistsError` if it exists."""
        with _new_folder(root) as making:
            self.write(making, seed, sizes)
            write_json(making / FINISHED, {"version": self.version, "seed": seed, "sizes": asdict(sizes)})


@contextmanager
def _new_folder(root: Path) -> Iterator[Path]:
    """A sibling folder that becomes `root` when the block ends well, so `root` is complete or absent."""
    if root.exists():
        raise FileExistsError(f"{root} exists already; mini writes only to a new folder.")
    root.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        making.chmod(0o755)
        yield making
        try:
            making.rename(root)
        except OSError as error:
            if root.exists():
                raise FileExistsError(f"{root} appeared while it was being made.") from error
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)  # gone already if all went well


def check_sizes(sizes: Any) -> None:
    """Raises `ValueError` where a field of the dataclass is below 1."""
    for name, number in asdict(sizes).items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


def write_json(path: Path, content: Any) -> None:
    """One JSON value, the same bytes every time."""
    path.write_text(_line(content), encoding="utf-8")


def write_json_lines(path: Path, contents: Iterable[Any]) -> None:
    """One JSON value a line."""
    path.write_text("".join(map(_line, contents)), encoding="utf-8")


def _line(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n"
