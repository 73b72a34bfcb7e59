"""Run pre-training in several processes with Fabric's launcher and report its progress to the parent."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch.multiprocessing.spawn import ProcessException

from harness.errors import UserError
from harness.process import prepare_process

OnStep = Callable[[int, dict[str, float]], None]
"""Called with a step (from 1) and its losses and accuracies by name."""
Train = Callable[[Fabric, OnStep], dict[str, Any]]
"""Training in one process. Must be picklable."""


class _Prepared(DDPStrategy):
    """Prepares each process before it joins the group, which silences Fabric's announcement."""

    def setup_environment(self) -> None:
        prepare_process()
        super().setup_environment()


def launch(train: Train, processes: int, on_step: OnStep) -> dict[str, Any]:
    """Run `train` in `processes` processes on the CPU and return the report of rank 0.

    The processes share this process's threads. A single process is this one, several are spawned. `on_step` is
    always called in this process, for the steps of rank 0. If it raises, all processes end.

    Raises:
        UserError: raised by a process.
        ProcessException: a process failed in another way.
    """
    if processes == 1:
        return train(Fabric(accelerator="cpu", devices=1, plugins=[LightningEnvironment()]), on_step)
    reader, writer = multiprocessing.get_context("spawn").Pipe(duplex=False)
    # In a Slurm job Fabric would use the job's tasks as processes unless another environment is given.
    strategy = _Prepared(start_method="spawn", process_group_backend="gloo")
    environment = LightningEnvironment()
    fabric = Fabric(accelerator="cpu", devices=processes, strategy=strategy, plugins=[environment])
    threads = max(1, torch.get_num_threads() // processes)
    with ThreadPoolExecutor(1) as pool, writer:
        heard = pool.submit(_listen, reader, on_step)
        try:
            report: dict[str, Any] = fabric.launch(_run, train, threads, writer)
        except ProcessException:
            _hang_up(writer)
            heard.result()  # raises the cause, if known
            raise
        finally:
            _hang_up(writer)
            os.environ.pop(
                "MASTER_PORT", None
            )  # set by Fabric; the next launch must choose a free port again
        heard.result()
    return report


def _run(fabric: Fabric, train: Train, threads: int, writer: Connection) -> dict[str, Any]:
    torch.set_num_threads(threads)
    told = partial(_tell, writer) if fabric.is_global_zero else lambda step, figures: None
    try:
        return train(fabric, told)
    except UserError as error:
        with suppress(BrokenPipeError):  # another process has closed it
            writer.send(error)
        raise


def _tell(writer: Connection, step: int, figures: dict[str, float]) -> None:
    writer.send((step, figures))


def _listen(reader: Connection, on_step: OnStep) -> None:
    """Call `on_step` with what rank 0 sends, and raise a `UserError` that any process sends.

    The pipe is closed at the end, so rank 0 fails at its next step if it still runs.
    """
    with reader:
        while (message := reader.recv()) is not None:
            if isinstance(message, UserError):
                raise message
            on_step(*message)


def _hang_up(writer: Connection) -> None:
    """End `_listen` unless it has already ended."""
    with suppress(BrokenPipeError):
        writer.send(None)
