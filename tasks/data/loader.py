"""Batches in a reproducible order, with images decoded once and padded only where needed."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from harness.backbones.base import Processor
from harness.backbones.inputs import Inputs
from harness.errors import UserError
from tasks.base import Batch, Example, Task
from tasks.data.augment import Augment, draw_seed
from tasks.data.batches import pad_text, plan_batches, stack_images
from tasks.data.images import Decoded, ImageCache, decode

_BATCHES_AHEAD = 2


_DECODING_THREADS = min(4, os.cpu_count() or 1)


class ImageRequest(NamedTuple):
    """An image that a batch needs; draw: seed of its augmentation, None if it is not augmented."""

    path: str
    draw: int | None = None


Ready = tuple[list[int], dict[ImageRequest, Decoded]]
"""Indices of a batch, and the images that were decoded for it."""


class Loader:
    """Iterates over one rank's share of `examples` once per epoch.

    The order depends on (seed, epoch) alone, not on the workers or the cache. Evaluation (`shuffle=False`) sorts
    by image shape and text length if `bucket` is set; `Batch.ids` identifies the examples. No example is ever
    repeated or dropped to make batches equal in size.

    workers: processes that decode; 0 decodes in threads of this process. Once all images are cached, no worker
        is started.
    bucket: fill batches with examples of similar image shape and text length.
    rank, world_size: every rank gets its own share of each step. All ranks have the same number of steps unless
        fewer than `world_size` examples are left for the last.
    key_images: add a digest of each image's pixels to the inputs, for caching its encoding.
    skip_bad_images: leave out examples with an unreadable image and count them in `skipped`, instead of raising
        `UserError`.
    augment: changes every image anew in each epoch; the draw depends on (seed, epoch, example) alone. Augmented
        images are not cached: they are decoded and augmented again in each epoch.
    wait_seconds: time that the caller has waited for batches, in seconds, summed over epochs.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        task: Task[Any],
        processor: Processor,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        workers: int = 0,
        bucket: bool = True,
        rank: int = 0,
        world_size: int = 1,
        cache: ImageCache | None = None,
        skip_bad_images: bool = False,
        augment: Augment | None = None,
        key_images: bool = False,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"invalid batch_size {batch_size} or rank {rank} of world_size {world_size}")
        if cache is not None and cache.processor.describe() != processor.describe():
            raise ValueError("the image cache belongs to another processor")
        self.examples = examples
        self.batch_size = batch_size
        self.wait_seconds = 0.0
        self._task = task
        self._processor = processor
        self._seed = seed
        self._shuffle = shuffle
        self._workers = workers
        self._bucket = bucket
        self._rank = rank
        self._world_size = world_size
        self._skip_bad_images = skip_bad_images
        self._augment = augment
        self._key_images = key_images
        self._epoch = 0
        self._start = 0
        self.cache = ImageCache(processor) if cache is None else cache
        self._paths = [tuple(os.fspath(path) for path in example.images) for example in examples]
        self._tokens = _tokenize(processor, [example.text for example in examples])

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch, which determines the order and the augmentation of the next iteration.

        start: the next iteration begins at this batch, counted from 0, and decodes nothing for those before it.
        """
        self._epoch = epoch
        self._start = start

    def examples_of(self, batch: Batch) -> list[Example]:
        """The examples of a batch, in its order."""
        return [self.examples[self._index_of[identifier]] for identifier in batch.ids]

    def __len__(self) -> int:
        """Batches per epoch on this rank."""
        return len(self._plan(None, None))

    def batches(self) -> list[list[int]]:
        """Batches of the current epoch on this rank, as indices into `examples`."""
        generator = None
        if self._shuffle:
            key = hashlib.sha256(f"{self._seed}:{self._epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:7]))
        return self._plan(self._sort_keys if self._bucket else None, generator)

    def __iter__(self) -> Iterator[Batch]:
        started = time.perf_counter()
        plan, epoch = self.batches()[self._start :], self._epoch
        complete = not any(self._missing(indices, epoch) for indices in plan)
        in_processes = self._workers > 0 and not complete
        decoded = self._in_processes if in_processes else self._in_threads
        with closing(decoded(plan, epoch)) as source:
            while True:
                item = next(source, None)
                batch = None if item is None else self._collate(*item, epoch)
                self.wait_seconds += time.perf_counter() - started
                if item is None:
                    return
                if batch is not None:
                    yield batch
                started = time.perf_counter()

    def _plan(self, sort_keys: np.ndarray | None, generator: torch.Generator | None) -> list[list[int]]:
        return plan_batches(
            len(self.examples), self.batch_size, sort_keys, generator, self._rank, self._world_size
        )

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {example.id: index for index, example in enumerate(self.examples)}

    @cached_property
    def _sort_keys(self) -> np.ndarray:
        """`(N,)` int64: position of each example's shapes in sorted order, by image shapes, then text length."""
        keys = [
            (*(self._shape(path) for path in paths), len(tokens))
            for paths, tokens in zip(self._paths, self._tokens, strict=True)
        ]
        positions = {key: place for place, key in enumerate(sorted(set(keys)))}
        return np.array([positions[key] for key in keys], dtype=np.int64)

    def _shape(self, path: str) -> tuple[int, int]:
        try:
            return self.cache.shape(path)
        except UserError as error:
            if not self._skip_bad_images:
                raise
            self.cache.add(path, error)
            return (0, 0)

    def _requests(self, index: int, epoch: int) -> list[ImageRequest]:
        """The images that an example needs in an epoch."""
        if self._augment is None:
            return [ImageRequest(path) for path in self._paths[index]]
        identifier = self.examples[index].id
        return [
            ImageRequest(path, draw_seed(self._seed, epoch, identifier, position))
            for position, path in enumerate(self._paths[index])
        ]

    def _cached(self, request: ImageRequest) -> Decoded | None:
        """The cached image or error; for augmented images only the error, as they are not cached."""
        if request.draw is None:
            return self.cache.get(request.path)
        return self.cache.skipped.get(request.path)

    def _add_to_cache(self, request: ImageRequest, image: Decoded) -> None:
        if request.draw is None or isinstance(image, UserError):
            self.cache.add(request.path, image)

    def _missing(self, indices: Sequence[int], epoch: int) -> list[ImageRequest]:
        """Images of a batch that must be decoded, each once."""
        needed = (request for index in indices for request in self._requests(index, epoch))
        return list(dict.fromkeys(request for request in needed if self._cached(request) is None))

    def _in_threads(self, plan: Sequence[list[int]], epoch: int) -> Generator[Ready, None, None]:
        """Batches in order with the images decoded for them; the next batches are decoded meanwhile."""
        pending: dict[ImageRequest, Future[Decoded]] = {}
        ahead: deque[tuple[list[int], dict[ImageRequest, Future[Decoded]]]] = deque()
        pool = ThreadPoolExecutor(_DECODING_THREADS, thread_name_prefix="decode")

        def next_in_line() -> Ready:
            indices, futures = ahead.popleft()
            images = {request: future.result() for request, future in futures.items()}
            for request, image in images.items():
                self._add_to_cache(request, image)
                pending.pop(request, None)
            return indices, images

        try:
            for indices in plan:
                futures = {}
                for request in self._missing(indices, epoch):
                    if request not in pending:
                        pending[request] = pool.submit(_decode, request, self._processor, self._augment)
                    futures[request] = pending[request]
                ahead.append((indices, futures))
                if len(ahead) > _BATCHES_AHEAD:
                    yield next_in_line()
            while ahead:
                yield next_in_line()
        finally:
            pool.shutdown(cancel_futures=True)

    def _in_processes(self, plan: Sequence[list[int]], epoch: int) -> Generator[Ready, None, None]:
        """The same with worker processes. They only decode; this process caches images and builds batches."""
        sent: deque[list[ImageRequest]] = deque()

        def missing_in_order() -> Iterator[list[ImageRequest]]:
            for indices in plan:
                sent.append(self._missing(indices, epoch))
                yield sent[-1]

        decoder: DataLoader[Any] = DataLoader(
            _Decoder(self._processor, self._augment),
            batch_size=None,
            sampler=_IteratorSampler(missing_in_order()),
            num_workers=self._workers,
            collate_fn=_identity,
            generator=torch.Generator(),  # otherwise it draws a seed from the global generator
        )
        for indices, (pixels, shapes) in zip(plan, decoder, strict=True):
            images = dict(zip(sent.popleft(), _unpack(pixels, shapes), strict=True))
            for request, image in images.items():
                self._add_to_cache(request, image)
            yield indices, images

    def _collate(
        self, indices: Sequence[int], fresh: Mapping[ImageRequest, Decoded], epoch: int
    ) -> Batch | None:
        """One batch; None if all its examples are left out."""
        kept: list[int] = []
        rows: list[list[Tensor]] = []
        for index in indices:
            row: list[Tensor] = []
            for request in self._requests(index, epoch):
                image = self._cached(request)
                if image is None:
                    image = fresh[request]
                if isinstance(image, Tensor):
                    row.append(image)
                elif self._skip_bad_images:
                    break
                else:
                    raise image
            else:
                kept.append(index)
                rows.append(row)
        if not kept:
            return None
        input_ids, text_mask = pad_text([self._tokens[index] for index in kept], self._processor.pad_id)
        examples = [self.examples[index] for index in kept]
        inputs = []
        for place, images in enumerate(zip(*rows, strict=True)):
            pixels, image_sizes = stack_images(images, self._processor)
            keys = None
            if self._key_images:
                paths = [self._paths[index][place] for index in kept]
                keys = tuple(self.cache.key(path, image) for path, image in zip(paths, images, strict=True))
            inputs.append(Inputs(input_ids, text_mask, pixels, image_sizes, image_keys=keys))
        return Batch(
            tuple(inputs),
            self._task.collate_targets(examples),
            tuple(example.id for example in examples),
        )


def _tokenize(processor: Processor, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text; repeated texts are tokenised once and share one list."""
    distinct = list(dict.fromkeys(texts))
    ids = dict(zip(distinct, processor.tokenize(distinct), strict=True))
    return [ids[text] for text in texts]


Packed = tuple[Tensor, list[torch.Size | UserError]]
"""Images concatenated in one flat tensor, and their shapes (or errors).

This takes one shared-memory file per batch; one per image would exceed the limit on open files.
"""


def _decode(request: ImageRequest, processor: Processor, augment: Augment | None) -> Decoded:
    """Decode one image, augmented if requested."""
    if augment is None or request.draw is None:
        return decode(request.path, processor)
    generator = np.random.default_rng(request.draw)
    return decode(request.path, processor, lambda image: augment(image, generator))


class _Decoder(Dataset[Packed]):
    """Runs in a worker: takes the requests of a batch, returns the images."""

    def __init__(self, processor: Processor, augment: Augment | None) -> None:
        self._processor = processor
        self._augment = augment

    def __getitem__(self, batch: list[ImageRequest]) -> Packed:
        images = [_decode(request, self._processor, self._augment) for request in batch]
        flat = [image.flatten() for image in images if isinstance(image, Tensor)]
        pixels = torch.cat(flat) if flat else torch.empty(0, dtype=torch.uint8)
        return pixels, [image.shape if isinstance(image, Tensor) else image for image in images]


def _unpack(pixels: Tensor, shapes: Sequence[torch.Size | UserError]) -> Iterator[Decoded]:
    start = 0
    for shape in shapes:
        if isinstance(shape, UserError):
            yield shape
        else:
            yield pixels[start : start + shape.numel()].view(shape)
            start += shape.numel()


class _IteratorSampler:
    """An iterator wrapped as a sampler."""

    def __init__(self, items: Iterator[list[ImageRequest]]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[list[ImageRequest]]:
        return self._items


def _identity(packed: Any) -> Any:
    return packed
