"""Encodings cached for reuse, in memory up to one budget and on disk up to another.

    <folder>/<encoder>/used                  touched when a process starts to use the encoder's entries
                       <first 2 digits>/<key>   one entry: SHA-256 over name and content, then safetensors

Memory: the first entries are kept and none is evicted. An epoch asks for each entry once, so eviction would only
remove what the next epoch needs. Disk: every entry is also written, so that later runs and concurrent processes find
it. When the budget is reached, the entries of other encoders are deleted, least recently used first; after that
nothing more is written.

If the disk fails, the worst that happens is that an encoding is computed again. A truncated or corrupted entry does
not match its SHA-256 and counts as missing. Files are put in place by a rename, so several processes may share a
folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from harness.config.types import CachePrecision

MIB, GIB = 2**20, 2**30


_DIGEST_BYTES = 32


_USED = "used"


@dataclass(frozen=True)
class Budgets:
    """Where encodings are cached, and how much space they may take.

    memory_mib: MiB of this process's memory.
    disk_gib: GiB on disk, over all encoders and processes; 0: nothing is written or read.
    folder: folder on disk; None: memory only.
    precision: `half` stores floating-point numbers in 16 bits: half the size, rounded to 11 significant bits.
    """

    memory_mib: float = 2048
    disk_gib: float = 8
    folder: Path | None = None
    precision: CachePrecision = "full"


def print_note(text: str) -> None:
    """Print one line on standard error, which progress bars do not overwrite."""
    print(text, file=sys.stderr)


class EncodingStore:
    """Encodings by encoder and key. Creating a store touches nothing on disk.

    notes: why encodings are no longer written to disk; each reason is reported once.
    """

    def __init__(self, budgets: Budgets, on_note: Callable[[str], None] = print_note) -> None:
        self.budgets = budgets
        self.memory_bytes = 0
        self.written_bytes = 0
        self.notes: list[str] = []
        self._on_note = on_note
        self._rows: dict[tuple[str, str], Tensor] = {}
        self._disk = budgets.folder if budgets.disk_gib > 0 else None
        self._writable = self._disk is not None
        self._disk_bytes: float | None = None
        self._in_use: set[str] = set()

    def __len__(self) -> int:
        """Number of entries in memory."""
        return len(self._rows)

    def share_of(self, other: EncodingStore) -> float:
        """Share of the encodings in another store's memory that this one has, in memory or on disk."""
        if not other._rows:
            return 0.0
        known = (
            each in self._rows or (self._disk is not None and self._path(self._disk, *each).is_file())
            for each in other._rows
        )
        return sum(known) / len(other)

    def get(self, encoder: str, key: str) -> Tensor | None:
        """The encoding on the CPU, in the precision it is stored in; None if it must be computed."""
        found = self._rows.get((encoder, key))
        if found is None and self._disk is not None:
            found = _read(self._path(self._disk, encoder, key), f"{encoder}/{key}")
            if found is not None:
                self._remember(encoder, key, found)
        return found

    def put(self, encoder: str, key: str, encoding: Tensor) -> Tensor:
        """Store a copy of an encoding as far as the budgets allow; returns it as `get` would.

        If there is no room for it, nothing is copied and the encoding stays on its device.
        """
        row = _rounded(encoding.detach(), self.budgets.precision)
        to_disk = self._disk is not None and self._writable
        if not to_disk and not self._fits(row):
            return row
        row = row.to("cpu", copy=True).contiguous()
        self._remember(encoder, key, row)
        if self._disk is not None and to_disk:
            self._write(self._disk, encoder, key, row)
        return row

    def _fits(self, row: Tensor) -> bool:
        return self.memory_bytes + row.nbytes <= self.budgets.memory_mib * MIB

    def _remember(self, encoder: str, key: str, row: Tensor) -> None:
        if (encoder, key) in self._rows or not self._fits(row):
            return
        self._rows[encoder, key] = row
        self.memory_bytes += row.nbytes

    def _path(self, folder: Path, encoder: str, key: str) -> Path:
        return folder / encoder / key[:2] / key

    def _write(self, folder: Path, encoder: str, key: str, row: Tensor) -> None:
        path = self._path(folder, encoder, key)
        content = save({"encoding": row})
        partial = path.with_name(f".{key}.{os.getpid()}.partial")
        try:
            if not self._make_room(folder, encoder, len(content)):
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(_digest(f"{encoder}/{key}", content) + content)
            partial.replace(path)
        except OSError as error:
            with suppress(OSError):  # the failure to write is reported below
                partial.unlink(missing_ok=True)
            self._stop_writing(f"{folder}: cannot be written ({error.strerror})")
            return
        self.written_bytes += len(content)
        if self._disk_bytes is not None:
            self._disk_bytes += len(content)

    def _make_room(self, folder: Path, encoder: str, size: int) -> bool:
        """True if `size` more bytes fit into the budget; deletes entries of other encoders if necessary."""
        budget = self.budgets.disk_gib * GIB
        if encoder not in self._in_use:
            (folder / encoder).mkdir(parents=True, exist_ok=True)
            (folder / encoder / _USED).touch()
            self._in_use.add(encoder)
        if self._disk_bytes is not None and self._disk_bytes + size <= budget:
            return True
        # Count again: other processes write to this folder and delete from it too.
        sizes = {each: _bytes_under(each) for each in folder.iterdir() if each.is_dir()}
        others = sorted((each for each in sizes if each.name not in self._in_use), key=_last_used)
        while others and sum(sizes.values()) + size > budget:
            shutil.rmtree(others[0], ignore_errors=True)
            del sizes[others.pop(0)]
        self._disk_bytes = sum(sizes.values())
        if self._disk_bytes + size <= budget:
            return True
        self._stop_writing(f"{folder}: the {self.budgets.disk_gib:g} GiB of --cache-disk-gib are used up")
        return False

    def _stop_writing(self, reason: str) -> None:
        self._writable = False
        note = f"{reason}; encodings that do not fit into memory are computed again each time."
        self.notes.append(note)
        self._on_note(note)


def _rounded(encoding: Tensor, precision: CachePrecision) -> Tensor:
    if precision == "full" or encoding.dtype not in (torch.float32, torch.float64):
        return encoding
    half = encoding.to(torch.float16)
    return half if bool(torch.isfinite(half).all()) else encoding


def _read(path: Path, name: str) -> Tensor | None:
    """The tensor of an entry; None if the entry is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if _digest(name, content) != digest:
        return None
    try:
        return load(content)["encoding"]
    except (SafetensorError, KeyError):  # written by another version
        return None


def _digest(name: str, content: bytes) -> bytes:
    """SHA-256 of name and content; the name keeps one entry from passing for another."""
    return hashlib.sha256(name.encode() + b"\n" + content).digest()


def _bytes_under(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # deleted in the meantime
                total += (Path(parent) / name).stat().st_size
    return total


def _last_used(folder: Path) -> float:
    try:
        return (folder / _USED).stat().st_mtime
    except OSError:
        return 0.0 if folder.exists() else time.time()
