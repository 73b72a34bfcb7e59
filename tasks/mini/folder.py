"""Folders of generated files: named by their content, complete or absent, reproducible to the byte."""

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
"""Written last: version, seed and sizes of the files in its folder."""

SizesT = TypeVar("SizesT", bound=Any)  # a dataclass


@dataclass(frozen=True)
class Generation(Generic[SizesT]):
    """One data set of the embedded benchmark.

    task: its name, part of the folder's name.
    version: increase it with every change that alters a file.
    write: writes all files except `FINISHED` into an empty folder, given seed and sizes. The same arguments give
        the same bytes (for pictures, with the same version of Pillow).
    """

    task: str
    version: int
    write: Callable[[Path, int, SizesT], None]

    def ensure(self, cache_root: Path, seed: int, sizes: SizesT) -> Path:
        """The folder with the files, generated under `cache_root` if it does not exist yet.

        Its name is unique to version, seed and sizes. Two processes may call this at once: both generate the
        same bytes, and one folder is kept. Raises `UserError` if the folder exists but is incomplete.
        """
        content = json.dumps([self.version, asdict(sizes)], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        root = cache_root / f"mini-{self.task}-v{self.version}-seed{seed}-{digest}"
        if not root.exists():
            with suppress(FileExistsError):  # another process was faster
                self.make(root, seed, sizes)
        if not (root / FINISHED).is_file():
            raise UserError(f"{root} is incomplete (it has no {FINISHED}): delete the folder and run again.")
        return root

    def make(self, root: Path, seed: int, sizes: SizesT) -> None:
        """Generate the new folder `root`. Raises `FileExistsError` if it exists."""
        with _new_folder(root) as temporary:
            self.write(temporary, seed, sizes)
            write_json(temporary / FINISHED, {"version": self.version, "seed": seed, "sizes": asdict(sizes)})


@contextmanager
def _new_folder(root: Path) -> Iterator[Path]:
    """A temporary sibling folder, renamed to `root` if the block succeeds: `root` is complete or absent."""
    if root.exists():
        raise FileExistsError(
            f"{root} already exists; the embedded benchmark is written to new folders only."
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        try:
            temporary.rename(root)
        except OSError as error:
            if root.exists():
                raise FileExistsError(f"{root} was created by another process in the meantime.") from error
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # already renamed if all went well


def check_sizes(sizes: Any) -> None:
    """Raises `ValueError` if a field of the dataclass is below 1."""
    for name, number in asdict(sizes).items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


def write_json(path: Path, content: Any) -> None:
    """Write one JSON value; equal values give equal bytes."""
    path.write_text(_line(content), encoding="utf-8")


def write_json_lines(path: Path, contents: Iterable[Any]) -> None:
    """Write one JSON value per line."""
    path.write_text("".join(map(_line, contents)), encoding="utf-8")


def _line(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n"
