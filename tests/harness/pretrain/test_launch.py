"""Several processes average their gradients, report once, and all end if one of them fails."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.multiprocessing.spawn import ProcessRaisedException

from harness.errors import UserError
from harness.pretrain.launch import OnStep, launch


def _gradient(fabric: Fabric, on_step: OnStep) -> dict[str, Any]:
    """Of w·x for x = 1 in the first process, 3 in the second."""
    model = nn.Linear(1, 1, bias=False)
    wrapped = fabric.setup_module(model)
    loss = wrapped(torch.tensor([[1.0 + 2 * fabric.global_rank]])).sum()
    fabric.backward(loss)
    assert model.weight.grad is not None
    on_step(1, {"x": 1.0 + 2 * fabric.global_rank})
    return {"gradient": model.weight.grad.item(), "rank": fabric.global_rank, "process": os.getpid()}


def _bad_settings(fabric: Fabric, on_step: OnStep) -> dict[str, Any]:
    fabric.barrier()
    raise UserError("the recipe is another.")


def _crash(fabric: Fabric, on_step: OnStep) -> dict[str, Any]:
    if not fabric.is_global_zero:
        raise ArithmeticError("the second process")
    threading.Event().wait()
    return {}


def _endless(fabric: Fabric, on_step: OnStep) -> dict[str, Any]:
    step = 0
    while True:
        step += 1
        fabric.barrier()
        on_step(step, {})


@pytest.mark.parametrize(("processes", "mean"), [(1, 1.0), (2, 2.0)])
def test_gradients_are_the_mean_over_processes(processes: int, mean: float) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    report = launch(_gradient, processes, lambda step, figures: told.append((step, figures)))
    assert report["gradient"] == mean
    assert report["rank"] == 0
    assert (report["process"] == os.getpid()) == (processes == 1)
    assert told == [(1, {"x": 1.0})]  # the first process's only


def test_user_error_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^the recipe is another\.$"):
        launch(_bad_settings, 2, lambda step, figures: None)


def test_crash_of_any_process_ends_all() -> None:
    with pytest.raises(ProcessRaisedException, match="the second process"):
        launch(_crash, 2, lambda step, figures: None)


def test_exception_of_the_callback_ends_all() -> None:
    steps = []

    def stop(step: int, figures: dict[str, float]) -> None:
        steps.append(step)
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(_endless, 2, stop)
    assert steps == [1, 2, 3]
