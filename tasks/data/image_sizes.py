"""Sizes of many images from their headers, which are read once per version of a file, several at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from harness.errors import UserError
from tasks.data.file_digests import digest_files, open_memory
from tasks.data.images import upright_size

Size = tuple[int, int]
"""Width and height in pixels, upright."""

HEADERS_AT_ONCE = 16
"""Threads that read headers: more than cores, as file systems take longer than the processor."""

_TABLE = (
    "CREATE TABLE IF NOT EXISTS sizes (digest BLOB PRIMARY KEY, width INTEGER, height INTEGER) WITHOUT ROWID"
)


def image_sizes(paths: Sequence[str]) -> dict[str, Size | UserError]:
    """Size of each image, or why it cannot be read. Sizes are kept in the cache folder by the digest of the file."""
    digests = digest_files(paths)
    with open_memory() as memory:
        kept = _recall(memory)
        found: dict[str, Size | UserError] = {}
        for path in paths:
            size = kept.get(digests.get(path))
            if size is not None:
                found[path] = size
        unknown = [path for path in paths if path not in found]
        with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
            read = dict(zip(unknown, pool.map(read_size, unknown), strict=True))
        _remember(memory, {digests.get(path): size for path, size in read.items()})
    return {**found, **read}


def read_size(path: str) -> Size | UserError:
    """Size of an image from its header, or why it cannot be read."""
    try:
        return upright_size(path)
    except UserError as error:
        return error


def _recall(memory: sqlite3.Connection | None) -> dict[str | None, Size]:
    if memory is None:
        return {}
    try:
        memory.execute(_TABLE)
        rows = memory.execute("SELECT digest, width, height FROM sizes").fetchall()
    except sqlite3.Error:
        return {}
    return {digest.hex(): (width, height) for digest, width, height in rows}


def _remember(memory: sqlite3.Connection | None, sizes: Mapping[str | None, Size | UserError]) -> None:
    if memory is None:
        return
    rows = [
        (bytes.fromhex(digest), *size)
        for digest, size in sizes.items()
        if digest is not None and not isinstance(size, UserError)
    ]
    try:
        with memory:
            memory.executemany("INSERT OR REPLACE INTO sizes VALUES (?, ?, ?)", rows)
    except sqlite3.Error:
        return
