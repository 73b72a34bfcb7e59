"""Resized images on disk, shared by all processes and runs of a machine.

    <folder>/<processor>/<name>.pixels    pixels (3, H, W) uint8 of one image after the other
                         <name>.index     one record per image: digest, offset, height, width, checksums

processor: digest of everything except the image file that determines the pixels: the processor's settings and code,
and Pillow's version. Every process writes its own files, with random names, and reads those of all processes, so no
locks are needed. A record is written after its pixels. Pixels are memory-mapped, and their checksum is verified when a
process first uses them, so a damaged image counts as missing.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
import secrets
import struct
import sys
import threading
import time
import weakref
import zlib
from dataclasses import dataclass
from pathlib import Path

import PIL
import torch
from torch import Tensor

from harness.backbones.base import Processor
from harness.digests import digest_json
from harness.digests.code import code_digest, reachable
from tasks.data.images import decode

_RECORD = struct.Struct("<32sQIIII")
"""SHA-256 of the image file, offset in bytes, height and width in pixels, CRC-32 of the pixels, CRC-32 of the rest."""

_LARGEST_FILE = 2**30
"""Bytes of pixels after which a new file is started."""

_REFRESH_SECONDS = 1.0
"""Minimum seconds between two reads of what other processes have written."""


@dataclass(frozen=True)
class _Entry:
    name: str
    offset: int
    height: int
    width: int
    checksum: int

    @property
    def end(self) -> int:
        return self.offset + 3 * self.height * self.width


class ImageFolder:
    """Images at a processor's input size, by the digest of their file (SHA-256, hex).

    root: the folder; it is made if it does not exist. If it cannot be written (any more), one line on standard error
        says so, and images that are not in it are decoded again.
    """

    def __init__(self, root: Path, processor: Processor) -> None:
        self.root = root
        self.place = root / _digest_of(processor)
        self._failed = multiprocessing.Value(
            "b", 0
        )  # shared with worker processes, so that only one prints it
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._verified: set[str] = set()
        self._damaged: set[_Entry] = set()
        self._read: dict[str, int] = {}
        self._looked = -math.inf
        self._maps: dict[str, mmap.mmap] = {}
        self._writer: _Writer | None = None
        try:
            self.place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._stop_writing(error)

    @property
    def writable(self) -> bool:
        """False once writing has failed."""
        return not self._failed.value

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, str) and self._find(digest) is not None

    def ready(self, digest: str | None) -> Tensor | None:
        """The image `(3, H, W)` uint8, mapped into memory, if this process has verified it; else None."""
        return self._view(self._entries[digest]) if digest in self._verified and digest is not None else None

    def get(self, digest: str) -> Tensor | None:
        """The image `(3, H, W)` uint8, mapped into memory; None if it is missing or damaged."""
        entry = self._find(digest)
        if entry is None:
            return None
        image = self._view(entry)
        if digest not in self._verified:
            if image is None or zlib.crc32(image.numpy().data) != entry.checksum:
                with self._lock:  # another process may have written it again: read all records again
                    self._damaged.add(entry)
                    self._entries.pop(digest, None)
                    self._read.clear()
                    self._looked = -math.inf
                return None
            self._verified.add(digest)
        return image

    def put(self, digest: str, image: Tensor) -> None:
        """Keep an image `(3, H, W)` uint8, if the folder can be written."""
        if not self.writable or digest in self:
            return
        pixels = image.contiguous().numpy().data
        height, width = image.shape[1:]
        checksum = zlib.crc32(pixels)
        with self._lock:
            try:
                writer = self._open_writer()
                entry = _Entry(writer.name, writer.end, height, width, checksum)
                writer.add(digest, entry, pixels)
            except OSError as error:
                self._stop_writing(error)
                return
            self._entries[digest] = entry

    def _find(self, digest: str) -> _Entry | None:
        if digest not in self._entries:
            with self._lock:
                if time.monotonic() - self._looked > _REFRESH_SECONDS:
                    self._refresh()
                    self._looked = time.monotonic()
        return self._entries.get(digest)

    def _refresh(self) -> None:
        """Read the records that have been written since the last call."""
        try:
            with os.scandir(self.place) as found:
                sizes = {each.name: each.stat().st_size for each in found if each.name.endswith(".index")}
        except OSError:
            return
        for name, size in sizes.items():
            start = self._read.get(name, 0)
            if size - start < _RECORD.size:
                continue
            try:
                with (self.place / name).open("rb") as file:
                    file.seek(start)
                    records = file.read((size - start) // _RECORD.size * _RECORD.size)
            except OSError:
                continue
            self._read[name] = start + len(records)
            for at in range(0, len(records), _RECORD.size):
                digest, offset, height, width, pixels, own = _RECORD.unpack_from(records, at)
                if zlib.crc32(records[at : at + _RECORD.size - 4]) == own:
                    entry = _Entry(name.removesuffix(".index"), offset, height, width, pixels)
                    if entry not in self._damaged:
                        self._entries.setdefault(digest.hex(), entry)

    def _view(self, entry: _Entry) -> Tensor | None:
        mapped = self._maps.get(entry.name)
        if mapped is None or len(mapped) < entry.end:
            try:
                with (self.place / f"{entry.name}.pixels").open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError):  # an empty file cannot be mapped
                return None
            if len(mapped) < entry.end:
                return None
            self._maps[entry.name] = mapped
        count = entry.end - entry.offset
        flat = torch.frombuffer(mapped, dtype=torch.uint8, offset=entry.offset, count=count)
        return flat.view(3, entry.height, entry.width)

    def _open_writer(self) -> _Writer:
        writer = self._writer
        # A forked process must not write to its parent's files.
        if writer is None or writer.process != os.getpid() or writer.end >= _LARGEST_FILE:
            self._writer = writer = _Writer(self.place)
        return writer

    def _stop_writing(self, error: OSError) -> None:
        with self._failed.get_lock():
            told, self._failed.value = self._failed.value, 1
        if not told:
            reason = error.strerror or type(error).__name__
            print(
                f"{self.root}: cannot be written ({reason}); images that it does not hold are decoded again.",
                file=sys.stderr,
            )


class _Writer:
    """One file of pixels and its index, written by one process."""

    def __init__(self, place: Path) -> None:
        self.process = os.getpid()
        self.name = f"{self.process}-{secrets.token_hex(8)}"
        self.end = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        self._pixels = os.open(place / f"{self.name}.pixels", flags, 0o666)
        weakref.finalize(self, os.close, self._pixels)
        self._index = os.open(place / f"{self.name}.index", flags, 0o666)
        weakref.finalize(self, os.close, self._index)

    def add(self, digest: str, entry: _Entry, pixels: memoryview) -> None:
        """Write pixels at the end, then their record."""
        _write(self._pixels, pixels)
        self.end = entry.end
        record = _RECORD.pack(
            bytes.fromhex(digest), entry.offset, entry.height, entry.width, entry.checksum, 0
        )
        _write(self._index, record[:-4] + struct.pack("<I", zlib.crc32(record[:-4])))


def _write(file: int, content: bytes | memoryview) -> None:
    """Write everything; the system may accept only a part at a time."""
    rest = memoryview(content).cast("B")
    while len(rest):
        rest = rest[os.write(file, rest) :]


def _digest_of(processor: Processor) -> str:
    code = code_digest(reachable([type(processor), decode], ["harness"]))
    return digest_json([processor.describe(), type(processor).__qualname__, PIL.__version__, code])
