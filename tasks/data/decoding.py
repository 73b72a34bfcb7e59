"""Decode images ahead of their use, in threads of this process or in worker processes.

Both are started once and reused in all epochs. Threads suit few cores. With many cores, worker processes leave the
interpreter of this process to the training loop.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.backbones.base import Processor
from harness.errors import UserError
from tasks.data.augment import Augment
from tasks.data.image_folder import ImageFolder
from tasks.data.images import Decoded, decode

IMAGES_PER_TASK = 8
"""Images that a worker process decodes at a time, or that a thread reads from the image folder."""

_WATCH_SECONDS = 2.0


class ImageRequest(NamedTuple):
    """An image that a batch needs.

    draw: seed of its augmentation; None if it is not augmented.
    digest: SHA-256 (hex) of the file, under which the image folder keeps it; None if it is not kept there.
    """

    path: str
    draw: int | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Packed:
    """Images concatenated in one flat tensor, with their shapes (or errors).

    What a worker process returns is then one file of shared memory; one per image could exceed the limit on open files.
    """

    pixels: Tensor
    shapes: Sequence[torch.Size | UserError]

    def __getitem__(self, place: int) -> Decoded:
        shape = self.shapes[place]
        if isinstance(shape, UserError):
            return shape
        start = sum(each.numel() for each in self.shapes[:place] if not isinstance(each, UserError))
        return self.pixels[start : start + shape.numel()].view(shape)


@dataclass(frozen=True)
class Pending:
    """An image that is being decoded: one of those that a task returns."""

    task: Future[Any]
    place: int

    def result(self) -> Decoded:
        """The image, or the error if it cannot be read. Waits until it is decoded.

        Raises:
            UserError: a worker process was killed.
        """
        try:
            image: Decoded = self.task.result()[self.place]
        except BrokenExecutor as error:
            raise UserError(
                "a process that decodes images has been killed, perhaps for lack of memory; lower --workers."
            ) from error
        return image

    def cancel(self) -> None:
        """Cancel the task if it has not started yet."""
        self.task.cancel()


def usable_cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Decoder:
    """Decodes images of one processor.

    folder: where resized images are kept on disk; None: nowhere.
    """

    def __init__(self, processor: Processor, folder: ImageFolder | None = None) -> None:
        self.processor = processor
        self.folder = folder
        self._executors: dict[tuple[int, str, int], Executor] = {}
        self._lock = threading.Lock()

    def submit(
        self, requests: Sequence[ImageRequest], augment: Augment | None, threads: int, workers: int
    ) -> dict[ImageRequest, Pending]:
        """Start to decode the requested images.

        threads: number of threads that decode, or only read from `folder` if there are workers.
        workers: number of processes that decode; 0: threads decode.
        """
        kept = [request for request in requests if self.folder is not None and request.digest in self.folder]
        known = set(kept)
        rest = [request for request in requests if request not in known]
        pool = self._executor("threads", threads)
        tasks: list[tuple[Future[Any], Sequence[ImageRequest]]] = []
        for some in _shares(kept):
            tasks.append((pool.submit(self._load, some, augment), some))
        if workers:
            processes = self._executor("processes", workers)
            tasks += [(processes.submit(_decode_packed, some, augment), some) for some in _shares(rest)]
        else:
            tasks += [(pool.submit(self._load, [request], augment), [request]) for request in rest]
        return {request: Pending(task, place) for task, some in tasks for place, request in enumerate(some)}

    def _load(self, requests: Sequence[ImageRequest], augment: Augment | None) -> list[Decoded]:
        return [load(request, self.processor, augment, self.folder) for request in requests]

    def _executor(self, kind: str, count: int) -> Executor:
        # A forked process has the executors of its parent, but not their threads.
        key = (os.getpid(), kind, count)
        with self._lock:
            if key not in self._executors:
                self._executors[key] = (
                    ThreadPoolExecutor(count, thread_name_prefix="decode")
                    if kind == "threads"
                    else _processes(count, self.processor, self.folder)
                )
            return self._executors[key]


def _shares(requests: Sequence[ImageRequest]) -> list[Sequence[ImageRequest]]:
    return [requests[start : start + IMAGES_PER_TASK] for start in range(0, len(requests), IMAGES_PER_TASK)]


def load(
    request: ImageRequest, processor: Processor, augment: Augment | None, folder: ImageFolder | None
) -> Decoded:
    """The image of a request: from `folder` if it is there, else decoded (and kept there)."""
    if folder is not None and request.digest is not None:
        kept = folder.get(request.digest)
        if kept is not None:
            return kept
    if augment is None or request.draw is None:
        image = decode(request.path, processor)
    else:
        generator = np.random.default_rng(request.draw)
        image = decode(request.path, processor, lambda picture: augment(picture, generator))
    if folder is not None and request.digest is not None and not isinstance(image, UserError):
        folder.put(request.digest, image)
    return image


_worker: tuple[Processor, ImageFolder | None] | None = None
"""What a worker process decodes with."""


def _processes(count: int, processor: Processor, folder: ImageFolder | None) -> Executor:
    # Forked, so that a script without a main guard is not run again; the workers use no CUDA and one thread.
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(count, context, _start_worker, (processor, folder, os.getpid()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork beside threads
        pool.submit(os.getpid).result()
    return pool


def _start_worker(processor: Processor, folder: ImageFolder | None, parent: int) -> None:
    global _worker
    _worker = (processor, folder)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, even if that was killed."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


def _decode_packed(requests: Sequence[ImageRequest], augment: Augment | None) -> Packed:
    assert _worker is not None
    processor, folder = _worker
    images = [load(request, processor, augment, folder) for request in requests]
    flat = [image.flatten() for image in images if isinstance(image, Tensor)]
    pixels = torch.cat(flat) if flat else torch.empty(0, dtype=torch.uint8)
    return Packed(pixels, [image.shape if isinstance(image, Tensor) else image for image in images])
