"""Atomic writing of files, and the folder for generated files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import UserError


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file completely and flush it to the disk, or leave the old one unchanged.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to. If the block succeeds, the file is flushed and renamed to `path`.

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
    """Turn operating system errors about `path` into user errors of one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path}: no space left on the disk; free some and run again.") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EFBIG):
            raise UserError(f"{path}: cannot be written: {error.strerror}.") from error
        raise


def _flush(path: Path) -> None:
    """Flush a file or folder to the disk; without its folder's entry a new file would be lost."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """Folder for generated data: `$HARNESS_CACHE`, or else the user's cache folder."""
    if chosen := os.environ.get("HARNESS_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "petl-harness"
