"""Images at a processor's input size, kept in memory and on disk."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image
from torch import Tensor

from harness.backbones.base import Processor
from harness.errors import UserError
from tasks.data.decoding import Decoder, ImageRequest
from tasks.data.file_digests import digest_files
from tasks.data.image_folder import ImageFolder
from tasks.data.image_sizes import image_sizes, read_size
from tasks.data.images import Decoded

FEW = 256
"""Images whose headers are read directly; the sizes of more are kept in the cache folder."""


class ImageCache:
    """Images decoded and resized for one processor, kept in memory up to a budget.

    Share one cache among all loaders of the same processor. The first images are kept and none is ever evicted:
    an epoch visits each image once, so eviction would only remove what the next epoch needs.

    budget_mib: largest size of the cached pixels in MiB.
    folder: where resized images are also kept on disk, without limit; None: nowhere.
    skipped: paths that could not be read, with the reason.
    decoder: decodes images that are not in memory; its threads and processes serve all loaders.
    """

    def __init__(self, processor: Processor, budget_mib: float = 2048, folder: Path | None = None) -> None:
        self.processor = processor
        self.budget_bytes = int(budget_mib * 2**20)
        self.used_bytes = 0
        self.skipped: dict[str, UserError] = {}
        self.decoder = Decoder(processor, None if folder is None else ImageFolder(folder, processor))
        self._images: dict[str, Tensor] = {}
        self._shapes: dict[str, tuple[int, int]] = {}
        self._shape_of_size: dict[tuple[int, int], tuple[int, int]] = {}
        self._keys: dict[str, bytes] = {}
        self._digests: dict[str, str | None] = {}
        self._lock = threading.Lock()

    def __contains__(self, path: str) -> bool:
        return path in self._images or path in self.skipped

    def __len__(self) -> int:
        return len(self._images)

    def get(self, path: str) -> Decoded | None:
        """The image, or the error if it cannot be read; None if it must be decoded or read from disk."""
        found = self._images.get(path, self.skipped.get(path))
        if found is None and self.decoder.folder is not None:
            found = self.decoder.folder.ready(self._digests.get(path))
        return found

    def add(self, path: str, image: Decoded) -> None:
        """Cache `image` if the budget allows. Images that are on disk are not cached in memory as well."""
        if isinstance(image, UserError):
            self.skipped[path] = image
            return
        folder, digest = self.decoder.folder, self._digests.get(path)
        if folder is not None and digest is not None and (folder.writable or digest in folder):
            return
        with self._lock:
            if path not in self._images and self.used_bytes + image.nbytes <= self.budget_bytes:
                # A view of a worker's shared memory would keep all of it alive.
                self._images[path] = image.clone() if image._base is not None else image
                self.used_bytes += image.nbytes

    def request(self, path: str) -> ImageRequest:
        """What the decoder needs to know of an unaugmented image."""
        return ImageRequest(path, digest=self._digests.get(path))

    def find_on_disk(self, paths: Iterable[str]) -> None:
        """Digest the image files, by which they are found on disk; does nothing without a folder."""
        if self.decoder.folder is None:
            return
        self._digests |= digest_files(path for path in paths if path not in self._digests)

    def key(self, path: str, image: Tensor) -> bytes:
        """SHA-256 of `image` (the decoded `path`) and of the processor's settings; computed once per path."""
        if path not in self._keys:
            hasher = hashlib.sha256(f"{tuple(image.shape)} {self._settings}\n".encode())
            hasher.update(image.contiguous().numpy().data)
            self._keys[path] = hasher.digest()
        return self._keys[path]

    def shape(self, path: str) -> tuple[int, int]:
        """Height and width in pixels of the processed image, from its header only."""
        (shape,) = self.shapes([path])
        if isinstance(shape, UserError):
            raise shape
        return shape

    def shapes(self, paths: Sequence[str]) -> list[tuple[int, int] | UserError]:
        """As `shape`, for many images, or why they cannot be read. Headers are read several at a time."""
        if self._fixed_shape is not None:
            return [self._fixed_shape] * len(paths)
        unknown = [path for path in dict.fromkeys(paths) if path not in self._shapes]
        sizes = image_sizes(unknown) if len(unknown) > FEW else {path: read_size(path) for path in unknown}
        errors = {path: size for path, size in sizes.items() if isinstance(size, UserError)}
        self._shapes |= {
            path: self._shape_of(size) for path, size in sizes.items() if not isinstance(size, UserError)
        }
        return [errors[path] if path in errors else self._shapes[path] for path in paths]

    @cached_property
    def _settings(self) -> str:
        return json.dumps(self.processor.describe(), sort_keys=True, default=str)

    @cached_property
    def _fixed_shape(self) -> tuple[int, int] | None:
        """The only output shape of a processor that crops or squeezes; headers are not read then."""
        shapes = {self._shape_of(size) for size in ((64, 64), (96, 64), (64, 96))}
        return shapes.pop() if len(shapes) == 1 else None

    def _shape_of(self, size: tuple[int, int]) -> tuple[int, int]:
        if size not in self._shape_of_size:
            height, width, _ = self.processor.resize(Image.new("RGB", size)).shape
            self._shape_of_size[size] = (height, width)
        return self._shape_of_size[size]
