"""Pre-training in several processes, by Fabric's launcher, and what the first of them tells the one that started it."""

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
"""Gets a step (from 1) and its figures."""
Train = Callable[[Fabric, OnStep], dict[str, Any]]
"""One process's part. Can be pickled."""


class _Prepared(DDPStrategy):
    """Prepares each process before it joins the others, which Fabric would announce."""

    def setup_environment(self) -> None:
        prepare_process()
        super().setup_environment()


def launch(train: Train, processes: int, on_step: OnStep) -> dict[str, Any]:
    """Run `train` in `processes` processes on the CPU, which share the threads; returns the first one's report.

    A single process is this one; several are started anew. `on_step` is called in this process either way, for the
    first process's steps; what it raises ends them all.

    Raises:
        UserError: a process raised it.
        ProcessException: a process failed.
    """
    if processes == 1:
        return train(Fabric(accelerator="cpu", devices=1), on_step)
    reader, writer = multiprocessing.get_context("spawn").Pipe(duplex=False)
    # Under Slurm Fabric would take the job's tasks for the processes, so the environment is named.
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
            heard.result()  # raises the cause if it is known
            raise
        finally:
            _hang_up(writer)
            os.environ.pop("MASTER_PORT", None)  # Fabric's; the next launch looks for a free port of its own
        heard.result()
    return report


def _run(fabric: Fabric, train: Train, threads: int, writer: Connection) -> dict[str, Any]:
    torch.set_num_threads(threads)
    told = partial(_tell, writer) if fabric.is_global_zero else lambda step, figures: None
    try:
        return train(fabric, told)
    except UserError as error:
        with suppress(BrokenPipeError):  # another process was first
            writer.send(error)
        raise


def _tell(writer: Connection, step: int, figures: dict[str, float]) -> None:
    writer.send((step, figures))


def _listen(reader: Connection, on_step: OnStep) -> None:
    """Pass on what the first process sends, and raise what any process has for the user.

    At the end the pipe is closed, so that a first process that still runs fails at its next step.
    """
    with reader:
        while (message := reader.recv()) is not None:
            if isinstance(message, UserError):
                raise message
            on_step(*message)


def _hang_up(writer: Connection) -> None:
    """End `_listen`, which may have ended by itself."""
    with suppress(BrokenPipeError):
        writer.send(None)
