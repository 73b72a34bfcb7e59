"""Batches in a reproducible order, made ahead of their use, with images padded only where needed."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.backbones.base import Processor
from harness.backbones.inputs import Inputs, padded_ids
from harness.errors import UserError
from tasks.base import Batch, Example, Task
from tasks.data.augment import Augment, draw_seed
from tasks.data.batches import pad_images, pad_text, plan_batches
from tasks.data.columns import image_table, texts_of
from tasks.data.decoding import ImageRequest, Pending, load, usable_cores
from tasks.data.delivery import Delivery, ahead
from tasks.data.image_cache import ImageCache
from tasks.data.images import Decoded
from tasks.data.tokens import tokenize

IMAGES_AT_ONCE = 256
"""Images that are decoded at once to find out whether they can be read."""

BATCHES_AHEAD = 2
"""Batches that are ready before they are used. As many more are being decoded, or enough for all threads."""

THREADS_BESIDE_CPU_TRAINING = 4
"""Largest number of threads that decode if the CPU also trains."""

MoreTexts = Callable[[Example, int], Sequence[int]]
"""Maps an example and the epoch to the examples whose texts follow its own in a batch, as indices."""


class Loader:
    """Iterates over one rank's share of `examples` once per epoch.

    The order depends on (seed, epoch) alone, not on the workers or the cache. Evaluation (`shuffle=False`) sorts
    by image shape and text length if `bucket` is set; `Batch.ids` identifies the examples. No example is ever
    repeated or dropped to make batches equal in size.

    workers: processes that decode; 0 decodes in threads of this process: one per usable core if batches are for a
        GPU, else at most `THREADS_BESIDE_CPU_TRAINING`.
    bucket: fill batches with examples of similar image shape and text length.
    batch_size: examples per step, of all ranks together.
    rank, world_size: every rank gets its own share of each step.
    every_step: give an empty batch where no example of a step is left for this rank, instead of leaving the step
        out. The steps of all ranks then correspond.
    key_images: add a digest of each image's pixels to the inputs, for caching its encoding.
    skip_bad_images: leave out examples with an unreadable image and count them in `skipped`, instead of raising
        `UserError`.
    augment: changes every image in another way in each epoch; the draw depends on (seed, epoch, example) alone.
        Augmented images are not cached: they are decoded and augmented again in each epoch.
    more_texts: texts that follow each example's own; a batch of B examples then has more than B rows of text.
    device: where batches are delivered; may be set at any time, for the next iteration.
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
        more_texts: MoreTexts | None = None,
        every_step: bool = False,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"invalid batch_size {batch_size} or rank {rank} of world_size {world_size}")
        if cache is not None and cache.processor.describe() != processor.describe():
            raise ValueError("the image cache belongs to another processor")
        self.examples = examples
        self.batch_size = batch_size
        self.wait_seconds = 0.0
        self.device = torch.device("cpu")
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
        self._more_texts = more_texts
        self._every_step = every_step
        self._epoch = 0
        self._start = 0
        self.cache = ImageCache(processor) if cache is None else cache
        self._paths, self._images = image_table(examples)
        self.tokens = tokenize(processor, texts_of(examples))
        self.cache.find_on_disk(self._paths)

    def with_texts(self, more_texts: MoreTexts) -> Loader:
        """The same loader with more texts for each example."""
        made = copy.copy(self)
        made._more_texts = more_texts
        return made

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch, which determines the order and the augmentation of the next iteration.

        start: the next iteration starts at this batch, counted from 0, and decodes no images of the earlier ones.
        """
        self._epoch = epoch
        self._start = start

    def examples_of(self, batch: Batch) -> list[Example]:
        """The examples of a batch, in its order."""
        return [self.examples[self._index_of[identifier]] for identifier in batch.ids]

    def readable(self) -> Sequence[int]:
        """Indices of the examples whose images can be read. Only with `skip_bad_images` this is found out."""
        if not self._skip_bad_images:
            return range(len(self.examples))
        for start in range(0, len(self._paths), IMAGES_AT_ONCE):
            paths = self._paths[start : start + IMAGES_AT_ONCE]
            requests = [self.cache.request(path) for path in paths if self.cache.get(path) is None]
            for request, image in self.cache.decoder.submit(requests, None, usable_cores(), 0).items():
                self.cache.add(request.path, image.result())
        return [
            index
            for index in range(len(self.examples))
            if not any(path in self.cache.skipped for path in self._paths_of(index))
        ]

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
        delivery = Delivery(self.device, self._processor)
        sent = (delivery.send(batch) for batch in self._made(plan, epoch, delivery.pinned))
        with closing(ahead(sent, BATCHES_AHEAD)) as source:
            while True:
                item = next(source, None)
                batch = None if item is None else delivery.receive(item)
                self.wait_seconds += time.perf_counter() - started
                if batch is None:
                    return
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
        shapes = np.zeros((len(self._paths), 2), dtype=np.int64)
        for place, shape in enumerate(self.cache.shapes(self._paths)):
            if not isinstance(shape, UserError):
                shapes[place] = shape
            elif self._skip_bad_images:
                self.cache.add(self._paths[place], shape)
            else:
                raise shape
        of_examples = shapes[self._images].reshape(len(self.examples), 2 * self._images.shape[1])
        keys = np.column_stack([of_examples, self.tokens.lengths])
        positions: np.ndarray = np.unique(keys, axis=0, return_inverse=True)[1]
        return positions.reshape(-1)

    def _paths_of(self, index: int) -> list[str]:
        return [self._paths[place] for place in self._images[index].tolist()]

    def _requests(self, index: int, epoch: int) -> list[ImageRequest]:
        """The images that an example needs in an epoch."""
        if self._augment is None:
            return [self.cache.request(path) for path in self._paths_of(index)]
        identifier = self.examples[index].id
        return [
            ImageRequest(path, draw_seed(self._seed, epoch, identifier, position))
            for position, path in enumerate(self._paths_of(index))
        ]

    def _cached(self, request: ImageRequest) -> Decoded | None:
        """The cached image or error; for augmented images only the error, as they are not cached."""
        if request.draw is None:
            return self.cache.get(request.path)
        return self.cache.skipped.get(request.path)

    def _missing(self, indices: Sequence[int], epoch: int) -> list[ImageRequest]:
        """Images of a batch that must be decoded, each once."""
        needed = (request for index in indices for request in self._requests(index, epoch))
        return list(dict.fromkeys(request for request in needed if self._cached(request) is None))

    def _made(self, plan: Sequence[list[int]], epoch: int, pinned: bool) -> Generator[Batch, None, None]:
        """The batches of a plan, pixels not yet normalised; images of later batches are decoded meanwhile."""
        cores = usable_cores()
        threads = cores if self.device.type == "cuda" else min(THREADS_BESIDE_CPU_TRAINING, cores)
        most = max(BATCHES_AHEAD, math.ceil(2 * max(threads, self._workers) / self.batch_size))
        pending: dict[ImageRequest, Pending] = {}
        waiting: deque[tuple[list[int], dict[ImageRequest, Pending]]] = deque()

        def next_batch() -> Batch | None:
            indices, tasks = waiting.popleft()
            images = {request: task.result() for request, task in tasks.items()}
            for request, image in images.items():
                if request.draw is None or isinstance(image, UserError):
                    self.cache.add(request.path, image)
                pending.pop(request, None)
            return self._collate(indices, images, epoch, pinned)

        try:
            for indices in plan:
                missing = self._missing(indices, epoch)
                new = [request for request in missing if request not in pending]
                pending |= self.cache.decoder.submit(new, self._augment, threads, self._workers)
                waiting.append((indices, {request: pending[request] for request in missing}))
                if len(waiting) > most and (batch := next_batch()) is not None:
                    yield batch
            while waiting:
                if (batch := next_batch()) is not None:
                    yield batch
        finally:
            for task in pending.values():
                task.cancel()

    def _collate(
        self, indices: Sequence[int], fresh: Mapping[ImageRequest, Decoded], epoch: int, pinned: bool
    ) -> Batch | None:
        """One batch; None if it has no examples and is left out."""
        kept: list[int] = []
        rows: list[list[Tensor]] = []
        for index in indices:
            row: list[Tensor] = []
            for request in self._requests(index, epoch):
                image = fresh.get(request, self._cached(request))
                if image is None:  # the image folder has been deleted meanwhile
                    image = load(request, self._processor, self._augment, None)
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
            return Batch((), None, ()) if self._every_step else None
        examples = [self.examples[index] for index in kept]
        texts = kept
        if self._more_texts is not None:
            texts = [
                row
                for index, example in zip(kept, examples, strict=True)
                for row in (index, *self._more_texts(example, epoch))
            ]
        input_ids, text_mask = pad_text([self.tokens[index] for index in texts], self._processor.pad_id)
        host_ids = padded_ids(input_ids, text_mask)
        inputs = []
        for place, images in enumerate(zip(*rows, strict=True)):
            pixels, image_sizes = pad_images(images, pinned)
            keys = None
            if self._key_images:
                paths = [self._paths_of(index)[place] for index in kept]
                keys = tuple(self.cache.key(path, image) for path, image in zip(paths, images, strict=True))
            inputs.append(
                Inputs(input_ids, text_mask, pixels, image_sizes, image_keys=keys, host_ids=host_ids)
            )
        targets = self._task.collate_targets(examples)
        return Batch(tuple(inputs), targets, tuple(example.id for example in examples), targets)
