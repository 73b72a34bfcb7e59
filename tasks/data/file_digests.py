"""Digests of many files; a file is read again only if it has changed.

Digests are kept in a database in the cache folder under a file's path, size, modification time and inode, as in git's
index. It only saves time: if it cannot be read or written, the files are read again.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.files import cache_folder

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


@dataclass(frozen=True)
class _Entry:
    """A file when it was read: size in bytes, modification time (ns), inode, time of reading (ns), SHA-256."""

    size: int
    modified: int
    inode: int
    read: int
    digest: bytes

    def holds_for(self, status: os.stat_result) -> bool:
        same = (self.size, self.modified, self.inode) == (status.st_size, status.st_mtime_ns, status.st_ino)
        return same and self.modified + RACY_NS <= self.read


def digest_files(paths: Iterable[Path]) -> dict[Path, str | None]:
    """SHA-256 (hex) of each file's bytes; None if it is missing or cannot be read."""
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        by_folder[path.parent].append(path)
    found: dict[Path, str | None] = {}
    with _memory() as memory, ThreadPoolExecutor() as pool:
        for folder, members in by_folder.items():
            place = str(folder.absolute())
            known, statuses = _recall(memory, place), _statuses(folder, {path.name for path in members})
            changed: list[Path] = []
            for path in members:
                status, entry = statuses.get(path.name), known.get(path.name)
                found[path] = None
                if status is not None and entry is not None and entry.holds_for(status):
                    found[path] = entry.digest.hex()
                elif status is not None:
                    changed.append(path)
            for start in range(0, len(changed), AT_ONCE):
                some = changed[start : start + AT_ONCE]
                shares = [some[first : first + SHARE] for first in range(0, len(some), SHARE)]
                read = [entry for entries in pool.map(_read_all, shares) for entry in entries]
                entries = {path: entry for path, entry in zip(some, read, strict=True) if entry is not None}
                found |= {path: entry.digest.hex() for path, entry in entries.items()}
                _remember(memory, place, {path.name: entry for path, entry in entries.items()})
    return found


def _read_all(paths: list[Path]) -> list[_Entry | None]:
    return [_read(path) for path in paths]


def _read(path: Path) -> _Entry | None:
    now = time.time_ns()
    try:
        with path.open("rb", buffering=0) as file:
            # Taken before reading: a file that changes meanwhile has a later modification time and is read again.
            status = os.fstat(file.fileno())
            hasher = hashlib.sha256()
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
    except OSError:
        return None
    return _Entry(status.st_size, status.st_mtime_ns, status.st_ino, now, hasher.digest())


def _statuses(folder: Path, names: set[str]) -> dict[str, os.stat_result]:
    """Status of each existing file, by one scan of the folder: single look-ups are slow on network file systems."""
    try:
        with os.scandir(folder) as entries:
            there = [entry for entry in entries if entry.name in names]
    except OSError:
        return {}
    found = {}
    for entry in there:
        try:
            found[entry.name] = entry.stat()
        except OSError:  # a dangling link, or deleted meanwhile
            continue
    return found


@contextmanager
def _memory() -> Iterator[sqlite3.Connection | None]:
    connection = _connect(cache_folder() / MEMORY)
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


def _recall(memory: sqlite3.Connection | None, folder: str) -> dict[str, _Entry]:
    if memory is None:
        return {}
    columns = "name, size, modified, inode, read, digest"
    try:
        rows = memory.execute(f"SELECT {columns} FROM files WHERE folder = ?", (folder,)).fetchall()
    except (sqlite3.Error, UnicodeError):
        return {}
    return {name: _Entry(*entry) for name, *entry in rows}


def _remember(memory: sqlite3.Connection | None, folder: str, entries: Mapping[str, _Entry]) -> None:
    if memory is None:
        return
    rows = [(folder, name, *vars(entry).values()) for name, entry in entries.items()]
    try:
        with memory:
            memory.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    except (sqlite3.Error, UnicodeError):  # a name that is not valid text
        return
