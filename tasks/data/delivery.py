"""Make batches ahead of their use, and copy them to the training device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch

from harness.backbones.base import Processor
from tasks.base import Batch
from tasks.data.batches import normalize

Item = TypeVar("Item")

_POLL_SECONDS = 0.2

_END = object()


class Delivery:
    """Copies batches with 8-bit pixels to a device and normalises them there.

    On CUDA a batch is copied from page-locked memory on a stream of its own, while the GPU computes on an earlier one;
    the stream that uses it waits for the copy, the CPU does not. On other devices pixels are normalised on the CPU.
    """

    def __init__(self, device: torch.device, processor: Processor) -> None:
        self._device = device
        self._processor = processor
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def pinned(self) -> bool:
        """True if batches should be made in page-locked memory."""
        return self._stream is not None

    def send(self, batch: Batch) -> tuple[Batch, Any]:
        """Start to copy a batch; called by the thread that makes batches. Pass the result to `receive`."""
        if self._stream is None:
            return self._normalized(batch), None
        with torch.cuda.stream(self._stream):
            return batch.pin_memory().to(self._device), self._stream.record_event()

    def receive(self, sent: tuple[Batch, Any]) -> Batch:
        """The batch, ready for the current stream of the calling thread."""
        batch, copied = sent
        if copied is None:
            return batch
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)
        for tensor in batch.tensors():
            tensor.record_stream(
                current
            )  # its memory must not be reused before this stream has finished with it
        return self._normalized(batch)

    def _normalized(self, batch: Batch) -> Batch:
        inputs = tuple(
            replace(part, pixels=normalize(part.pixels, part.image_sizes, self._processor))
            for part in batch.inputs
        )
        return replace(batch, inputs=inputs)


def ahead(source: Generator[Item, None, None], count: int) -> Generator[Item, None, None]:
    """The items of `source`; another thread makes up to `count` of them ahead.

    Exceptions of `source` are raised here. When this generator is closed, `source` is closed too.

    `source` computes with one thread. With as many as the caller, OpenMP would see more threads than cores and put
    the caller's to sleep between two operators: training on two threads took 1.7 times as long.
    """
    made: queue.Queue[Any] = queue.Queue(count)
    stopped, single = threading.Event(), threading.Event()
    threads = torch.get_num_threads()

    def offer(item: Any) -> bool:
        while not stopped.is_set():
            try:
                made.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # without it, the first operator would take the number that is set below
        single.set()
        try:
            for item in source:
                if not offer((item, None)):
                    return
            offer((_END, None))
        except BaseException as error:
            offer((_END, error))
        finally:
            source.close()

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    single.wait()
    torch.set_num_threads(threads)  # what threads of later begin with, which `work` has changed too
    try:
        yield from _taken(made)
    finally:
        stopped.set()
        while not made.empty():
            made.get_nowait()
        thread.join()


def _taken(made: queue.Queue[Any]) -> Iterator[Any]:
    while True:
        item, error = made.get()
        if error is not None:
            raise error
        if item is _END:
            return
        yield item
