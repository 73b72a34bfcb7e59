"""Files written whole or not at all, and where generated files are kept."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import UserError


def write_atomically(path: Path, content: bytes) -> Path:
    """Put a file in its place, complete and flushed to the disk, or leave what was there.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; when the block ends well it is flushed and takes `path`'s place.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with disk_errors(path):
            yield partial
            _flush(partial)
            partial.replace(path)
            _flush(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about `path` into one line for people."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path}: no space left on the disk; free some and run again.") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EFBIG):
            raise UserError(f"{path}: cannot be written: {error.strerror}.") from error
        raise


def _flush(path: Path) -> None:
    """A folder is flushed too, as its entry for the file is what makes the file be there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """Where generated data are kept: `$HARNESS_CACHE`, else the user's cache folder."""
    if chosen := os.environ.get("HARNESS_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "petl-harness"
