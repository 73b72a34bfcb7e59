"""Resized images on disk, shared by all processes and runs of a machine.

    <folder>/<processor>/<first 2 digits>/<digest>   header, then the pixels (3, H, W) uint8

processor: digest of all that the pixels depend on besides the file: the processor's settings and code, and Pillow's
version. digest: SHA-256 of the image file. Files are put in place by a rename, so that several processes can write.
They are memory-mapped when read, and their checksum is verified, so a damaged file counts as missing.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import struct
import sys
import threading
import zlib
from contextlib import suppress
from pathlib import Path

import PIL
import torch
from torch import Tensor

from harness.backbones.base import Processor
from harness.digests import digest_json
from harness.digests.code import code_digest, reachable
from tasks.data.images import decode

_HEADER = struct.Struct("<8sIII")
"""Format, height and width in pixels, CRC-32 of the pixels."""

_FORMAT = b"petlimg1"


class ImageFolder:
    """Images at a processor's input size, by the digest of their file.

    root: the folder; it is made if it does not exist. If it cannot be written (any more), one line on standard error
        says so, and images that are not in it are decoded again.
    """

    def __init__(self, root: Path, processor: Processor) -> None:
        self.root = root
        self.place = root / _digest_of(processor)
        self._full = multiprocessing.Value("b", 0)  # shared with worker processes: one of them tells for all
        try:
            self.place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._stop_writing(error)

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, str) and self._path(digest).exists()

    def get(self, digest: str) -> Tensor | None:
        """The image `(3, H, W)` uint8, mapped into memory; None if it is missing or damaged."""
        try:
            with self._path(digest).open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError):  # an empty file cannot be mapped
            return None
        if len(content) < _HEADER.size:
            return None
        name, height, width, checksum = _HEADER.unpack_from(content)
        count = 3 * height * width
        if name != _FORMAT or not count or len(content) != _HEADER.size + count:
            return None
        if zlib.crc32(memoryview(content)[_HEADER.size :]) != checksum:
            return None
        flat = torch.frombuffer(content, dtype=torch.uint8, offset=_HEADER.size)
        return flat.view(3, height, width)

    def put(self, digest: str, image: Tensor) -> None:
        """Keep an image `(3, H, W)` uint8, if the folder can be written."""
        if self._full.value:
            return
        pixels = image.contiguous().numpy().data
        path = self._path(digest)
        partial = path.with_name(f".{digest}.{os.getpid()}.{threading.get_ident()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(_HEADER.pack(_FORMAT, *image.shape[1:], zlib.crc32(pixels)))
                file.write(pixels)
            partial.replace(path)
        except OSError as error:
            with suppress(OSError):  # the failure to write is reported below
                partial.unlink(missing_ok=True)
            self._stop_writing(error)

    def _path(self, digest: str) -> Path:
        return self.place / digest[:2] / digest

    def _stop_writing(self, error: OSError) -> None:
        with self._full.get_lock():
            told, self._full.value = self._full.value, 1
        if not told:
            print(
                f"{self.root}: cannot be written ({error.strerror}); images that it does not hold are decoded again.",
                file=sys.stderr,
            )


def _digest_of(processor: Processor) -> str:
    code = code_digest(reachable([type(processor), decode], ["harness"]))
    return digest_json([processor.describe(), type(processor).__qualname__, PIL.__version__, code])
