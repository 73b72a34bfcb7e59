"""Which process this is among those that train a cell together."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from harness.config import DeviceSettings
from harness.errors import UserError
from harness.process import Requests, StopRequestedError
from harness.training import ranks
from harness.training.ranks import Ranks, _first_host, started_ranks, stop_together

SRUN = {
    "SLURM_JOB_ID": "100",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "gpu07",
    "MASTER_PORT": "29400",
}


def test_srun_and_torchrun_say_which_rank_this_is() -> None:
    device = DeviceSettings(devices=2, nodes=2)
    assert started_ranks(device, SRUN) == Ranks(3, 4, 1, 1, "gpu07", 20000 + 37 * 100 + 2)
    assert started_ranks(device, TORCHRUN) == Ranks(3, 4, 1, 1, "gpu07", 29400)


@pytest.mark.parametrize("environment", [{}, SRUN, TORCHRUN, {"SLURM_NTASKS": "8"}])
def test_one_device_never_waits_for_other_processes(environment: dict[str, str]) -> None:
    assert started_ranks(DeviceSettings(), environment) is None


def test_the_harness_starts_the_processes_of_one_node_itself() -> None:
    assert started_ranks(DeviceSettings(devices=4), {}) is None
    alone = {**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    assert started_ranks(DeviceSettings(devices=2), alone) is None


@pytest.mark.parametrize(
    ("device", "environment", "started"),
    [
        (DeviceSettings(devices=2), SRUN, "4 were started"),
        (DeviceSettings(devices=2, nodes=2), {}, "1 was started"),
        (DeviceSettings(devices=4, nodes=2), TORCHRUN, "4 were started"),
    ],
)
def test_another_number_of_processes_is_refused(
    device: DeviceSettings, environment: dict[str, str], started: str
) -> None:
    with pytest.raises(UserError, match=rf"{started}; start them with srun --nodes={device.nodes} "):
        started_ranks(device, environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[03-05,7],cpu1", "gpu03"), ("cpu1", "cpu1"), ("a,b[1-2]", "a"), ("n[4]", "n4")],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert _first_host(nodes) == first


class Requested(threading.local, Requests):
    """Requests of one rank, if ranks are threads."""


@pytest.mark.parametrize("stopped", [None, 0, 1])
def test_ranks_with_different_numbers_of_batches_stop_at_the_same_one(
    stopped: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, barrier, numbers = Requested(), threading.Barrier(2, timeout=10), {}

    def highest(rank: Any, own: Sequence[float]) -> list[float]:
        numbers[rank] = list(own)
        barrier.wait()
        found = [max(pair) for pair in zip(*numbers.values(), strict=True)]
        barrier.wait()
        return found

    monkeypatch.setattr(ranks, "REQUESTS", requests)
    monkeypatch.setattr(ranks, "highest", highest)

    def evaluate(rank: Any, batches: int) -> tuple[int, bool]:
        """Batches done, and whether the evaluation was stopped; the signal comes during the third batch."""
        done = 0
        try:
            for _ in range(batches):
                stop_together(rank)
                done += 1
                requests.stop = rank == stopped and done == 3
            stop_together(rank, done=True)
        except StopRequestedError:
            return done, True
        return done, False

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(evaluate, (0, 1), (3, 5)))
    assert found == ([(3, False), (5, False)] if stopped is None else [(3, True), (3, True)])
