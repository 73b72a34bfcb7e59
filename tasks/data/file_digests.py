"""Digests of many files; a file is read again only if it has changed.

Digests are kept in a database in the cache folder under a file's path, size, modification time and inode, as in git's
index. It only saves time: if it cannot be read or written, the files are read again.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import time
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from harness.errors import UserError
from harness.folders import cache_folder

MEMORY = "file-digests-1.sqlite"
"""The database in the cache folder; the number is the version of its layout."""

RACY_NS = 2_000_000_000
"""A file modified less than this before it was read may change again and keep its modification time.

The coarsest file systems (FAT) keep times to 2 s. Git calls such an entry racily clean and does not trust it either.
"""

AT_ONCE = 2048
"""Files that are read before their digests are saved."""

SHARE = 32
"""Files that a thread takes at a time: handing over small files one by one takes longer than reading them."""

CHUNK = 2**20
"""Bytes read at a time."""

_PATIENCE = 10.0  # seconds to wait for another process that is writing

_TABLE = """CREATE TABLE IF NOT EXISTS files (
    folder TEXT, name TEXT, size INTEGER, modified INTEGER, inode INTEGER, read INTEGER, digest BLOB,
    PRIMARY KEY (folder, name)) WITHOUT ROWID"""


File = TypeVar("File", str, Path)


class _Entry(NamedTuple):
    """A file when it was read: name, size in bytes, modification time (ns), inode, time of reading (ns), SHA-256."""

    name: str
    size: int
    modified: int
    inode: int
    read: int
    digest: bytes

    def holds_for(self, status: os.stat_result) -> bool:
        same = (self.size, self.modified, self.inode) == (status.st_size, status.st_mtime_ns, status.st_ino)
        return same and self.modified + RACY_NS <= self.read


def digest_files(paths: Iterable[File]) -> dict[File, str | None]:
    """SHA-256 (hex) of each file's bytes; None if it is missing, no regular file, or cannot be read."""
    by_folder: dict[str, dict[str, File]] = defaultdict(dict)
    found: dict[File, str | None] = {}
    for path in paths:
        # Texts, and no functions of os.path: there may be 200,000.
        folder, separator, name = os.fspath(path).rpartition(os.sep)
        by_folder[folder + separator][name] = path
        found[path] = None
    with open_memory() as memory, ThreadPoolExecutor() as pool:
        for folder, members in by_folder.items():
            place = os.path.abspath(folder)  # noqa: PTH100 - as above
            known = _recall(memory, place)
            changed: list[str] = []
            for name, status in _statuses(place, members):
                row = known.get(name)
                if row is not None and (entry := _Entry._make(row)).holds_for(status):
                    found[members[name]] = entry.digest.hex()
                else:
                    changed.append(name)
            for start in range(0, len(changed), AT_ONCE):
                some = changed[start : start + AT_ONCE]
                shares = [some[first : first + SHARE] for first in range(0, len(some), SHARE)]
                read = [entry for entries in pool.map(partial(_read_all, place), shares) for entry in entries]
                entries = [entry for entry in read if entry is not None]
                found |= {members[entry.name]: entry.digest.hex() for entry in entries}
                _remember(memory, place, entries)
    return found


def _read_all(folder: str, names: list[str]) -> list[_Entry | None]:
    return [_read(os.path.join(folder, name)) for name in names]  # noqa: PTH118 - as above


def _read(path: str) -> _Entry | None:
    now = time.time_ns()
    try:
        with Path(path).open("rb", buffering=0) as file:
            # Taken before reading: a file that changes meanwhile has a later modification time and is read again.
            status = os.fstat(file.fileno())
            hasher = hashlib.sha256()
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
    except OSError:
        return None
    name = path.rpartition(os.sep)[2]
    return _Entry(name, status.st_size, status.st_mtime_ns, status.st_ino, now, hasher.digest())


def _statuses(folder: str, names: Container[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Status of each existing file, by one scan of the folder: single look-ups are slow on network file systems."""
    try:
        with os.scandir(folder) as entries:
            there = [entry for entry in entries if entry.name in names]
    except (OSError, ValueError):  # no such folder; a NUL in its name
        return
    for entry in there:
        try:
            status = entry.stat()
        except OSError:  # a dangling link, or deleted meanwhile
            continue
        if stat.S_ISREG(status.st_mode):  # reading a pipe or a device might never end
            yield entry.name, status


@contextmanager
def open_memory() -> Iterator[sqlite3.Connection | None]:
    """The database while the block lasts; None if it cannot be read or written."""
    try:
        connection = _connect(cache_folder() / MEMORY)
    except UserError:  # there is no cache folder
        connection = None
    if connection is None:
        yield None
        return
    with closing(connection):
        yield connection


def _connect(path: Path, again: bool = True) -> sqlite3.Connection | None:
    """None if it cannot be read or written. A damaged database is replaced by an empty one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=_PATIENCE)
    except (OSError, sqlite3.Error):
        return None
    try:
        with connection:
            connection.execute(_TABLE)
    except sqlite3.Error as error:
        connection.close()
        return _begin_anew(path) if again and _is_broken(error) else None
    return connection


def _begin_anew(path: Path) -> sqlite3.Connection | None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return None
    return _connect(path, again=False)


def _is_broken(error: sqlite3.Error) -> bool:
    """True if the content is damaged; False if the file is locked or read-only."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)


def _recall(memory: sqlite3.Connection | None, folder: str) -> dict[str, tuple[Any, ...]]:
    """Fields of the entries of a folder by name: plain tuples, which take the garbage collector no time."""
    if memory is None:
        return {}
    columns = "name, size, modified, inode, read, digest"
    try:
        rows = memory.execute(f"SELECT {columns} FROM files WHERE folder = ?", (folder,))
        return {row[0]: row for row in rows}
    except (sqlite3.Error, UnicodeError):
        return {}


def _remember(memory: sqlite3.Connection | None, folder: str, entries: Iterable[_Entry]) -> None:
    if memory is None:
        return
    rows = [(folder, *entry) for entry in entries]
    try:
        with memory:
            memory.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    except (sqlite3.Error, UnicodeError):  # a name that is not valid text
        return
