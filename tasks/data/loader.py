"""Batches: a reproducible order, images decoded once, and padding only where a batch needs it."""

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


class Wanted(NamedTuple):
    """An image that a batch needs; draw: the seed of its augmentation, None as it is."""

    path: str
    draw: int | None = None


Ready = tuple[list[int], dict[Wanted, Decoded]]
"""A batch's indices and the images that were decoded for it."""


class Loader:
    """Iterates over a rank's share of `examples` once per epoch.

    The order is a function of (seed, epoch) alone, not of the workers or of what is cached. Evaluation
    (`shuffle=False`) sorts by shape and text length where `bucket` is set: `Batch.ids` tells who is who.
    No example is ever repeated or dropped to even out batches.

    workers: processes that decode; 0 decodes in threads of this process. Once all images are in the cache,
        both run here.
    bucket: fill batches with examples of like image shapes and text lengths.
    rank, world_size: every rank gets its own share of each step; steps are equal in number on all ranks
        unless fewer than `world_size` examples are left for the last.
    key_images: put a digest of each image's pixels into the inputs, under which encodings are kept.
    skip_bad_images: leave out examples whose image cannot be read and count them in `skipped`, instead of
        raising `UserError`.
    augment: changes every image of every epoch anew, by a draw that is a function of (seed, epoch, example).
        Augmented images are not kept: they are read and made again in each epoch.
    wait_seconds: time spent in here while the caller waited, in seconds, summed over epochs.
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
            raise ValueError(f"batch_size {batch_size}, rank {rank} of {world_size}")
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
        self.cache = ImageCache(processor) if cache is None else cache
        self._paths = [tuple(os.fspath(path) for path in example.images) for example in examples]
        self._tokens = _tokenize(processor, [example.text for example in examples])

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self._epoch = epoch

    def examples_of(self, batch: Batch) -> list[Example]:
        """The examples of a batch, in its order."""
        return [self.examples[self._index_of[identifier]] for identifier in batch.ids]

    def __len__(self) -> int:
        """Batches per epoch on this rank."""
        return len(self._plan(None, None))

    def batches(self) -> list[list[int]]:
        """Batches of the chosen epoch on this rank, as indices into `examples`."""
        generator = None
        if self._shuffle:
            key = hashlib.sha256(f"{self._seed}:{self._epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:7]))
        return self._plan(self._likeness if self._bucket else None, generator)

    def __iter__(self) -> Iterator[Batch]:
        started = time.perf_counter()
        plan, epoch = self.batches(), self._epoch
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

    def _plan(self, likeness: np.ndarray | None, generator: torch.Generator | None) -> list[list[int]]:
        return plan_batches(
            len(self.examples), self.batch_size, likeness, generator, self._rank, self._world_size
        )

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {example.id: index for index, example in enumerate(self.examples)}

    @cached_property
    def _likeness(self) -> np.ndarray:
        """`(N,)` int64: the place of each example in the order of image shapes, then text length."""
        keys = [
            (*(self._shape(path) for path in paths), len(tokens))
            for paths, tokens in zip(self._paths, self._tokens, strict=True)
        ]
        places = {key: place for place, key in enumerate(sorted(set(keys)))}
        return np.array([places[key] for key in keys], dtype=np.int64)

    def _shape(self, path: str) -> tuple[int, int]:
        try:
            return self.cache.shape(path)
        except UserError as error:
            if not self._skip_bad_images:
                raise
            self.cache.add(path, error)
            return (0, 0)

    def _wanted(self, index: int, epoch: int) -> list[Wanted]:
        """The images of an example in an epoch."""
        if self._augment is None:
            return [Wanted(path) for path in self._paths[index]]
        identifier = self.examples[index].id
        return [
            Wanted(path, draw_seed(self._seed, epoch, identifier, position))
            for position, path in enumerate(self._paths[index])
        ]

    def _held(self, wanted: Wanted) -> Decoded | None:
        """What is in the cache for it; of augmented images only why they cannot be read."""
        if wanted.draw is None:
            return self.cache.get(wanted.path)
        return self.cache.skipped.get(wanted.path)

    def _keep(self, wanted: Wanted, image: Decoded) -> None:
        if wanted.draw is None or isinstance(image, UserError):
            self.cache.add(wanted.path, image)

    def _missing(self, indices: Sequence[int], epoch: int) -> list[Wanted]:
        """Images of a batch that have to be decoded, each once."""
        needed = (wanted for index in indices for wanted in self._wanted(index, epoch))
        return list(dict.fromkeys(wanted for wanted in needed if self._held(wanted) is None))

    def _in_threads(self, plan: Sequence[list[int]], epoch: int) -> Generator[Ready, None, None]:
        """Batches in order with what was decoded for them, the next ones decoding meanwhile."""
        pending: dict[Wanted, Future[Decoded]] = {}
        ahead: deque[tuple[list[int], dict[Wanted, Future[Decoded]]]] = deque()
        pool = ThreadPoolExecutor(_DECODING_THREADS, thread_name_prefix="decode")

        def next_in_line() -> Ready:
            indices, futures = ahead.popleft()
            images = {wanted: future.result() for wanted, future in futures.items()}
            for wanted, image in images.items():
                self._keep(wanted, image)
                pending.pop(wanted, None)
            return indices, images

        try:
            for indices in plan:
                futures = {}
                for wanted in self._missing(indices, epoch):
                    if wanted not in pending:
                        pending[wanted] = pool.submit(_decode, wanted, self._processor, self._augment)
                    futures[wanted] = pending[wanted]
                ahead.append((indices, futures))
                if len(ahead) > _BATCHES_AHEAD:
                    yield next_in_line()
            while ahead:
                yield next_in_line()
        finally:
            pool.shutdown(cancel_futures=True)

    def _in_processes(self, plan: Sequence[list[int]], epoch: int) -> Generator[Ready, None, None]:
        """The same with worker processes. They only decode; the cache and the batches stay here."""
        requests: deque[list[Wanted]] = deque()

        def missing_in_order() -> Iterator[list[Wanted]]:
            for indices in plan:
                requests.append(self._missing(indices, epoch))
                yield requests[-1]

        decoder: DataLoader[Any] = DataLoader(
            _Decoder(self._processor, self._augment),
            batch_size=None,
            sampler=_Once(missing_in_order()),
            num_workers=self._workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # or it would draw a seed from the global one
        )
        for indices, (pixels, shapes) in zip(plan, decoder, strict=True):
            images = dict(zip(requests.popleft(), _unpack(pixels, shapes), strict=True))
            for wanted, image in images.items():
                self._keep(wanted, image)
            yield indices, images

    def _collate(self, indices: Sequence[int], fresh: Mapping[Wanted, Decoded], epoch: int) -> Batch | None:
        """One batch; None if none of its images could be read."""
        kept: list[int] = []
        rows: list[list[Tensor]] = []
        for index in indices:
            row: list[Tensor] = []
            for wanted in self._wanted(index, epoch):
                image = self._held(wanted)
                if image is None:
                    image = fresh[wanted]
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
    """Token ids of each text; texts that recur are tokenised once and share their list."""
    distinct = list(dict.fromkeys(texts))
    ids = dict(zip(distinct, processor.tokenize(distinct), strict=True))
    return [ids[text] for text in texts]


Packed = tuple[Tensor, list[torch.Size | UserError]]
"""Images one after the other in one flat tensor, and their shapes.

One shared-memory file per batch: one per image would run into the limit on open files.
"""


def _decode(wanted: Wanted, processor: Processor, augment: Augment | None) -> Decoded:
    """One image as it is wanted."""
    if augment is None or wanted.draw is None:
        return decode(wanted.path, processor)
    generator = np.random.default_rng(wanted.draw)
    return decode(wanted.path, processor, lambda image: augment(image, generator))


class _Decoder(Dataset[Packed]):
    """What runs in a worker: a list of what is wanted in, the images out."""

    def __init__(self, processor: Processor, augment: Augment | None) -> None:
        self._processor = processor
        self._augment = augment

    def __getitem__(self, batch: list[Wanted]) -> Packed:
        images = [_decode(wanted, self._processor, self._augment) for wanted in batch]
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


class _Once:
    """An iterator in the form of a sampler."""

    def __init__(self, items: Iterator[list[Wanted]]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[list[Wanted]]:
        return self._items


def _as_it_is(packed: Any) -> Any:
    return packed
