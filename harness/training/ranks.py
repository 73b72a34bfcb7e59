"""The processes that train one cell together: their places, and what they exchange."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import Tensor, distributed, nn

from harness.config import DeviceSettings
from harness.errors import UserError
from harness.process import REQUESTS

ValueT = TypeVar("ValueT")

_BUCKET_BYTES = 32 * 2**20
"""Gradients are summed over ranks in pieces of about this size."""


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that train one cell together.

    address, port: where the process of rank 0 listens for the others.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    node: int = 0
    address: str = "127.0.0.1"
    port: int = 0


def started_ranks(device: DeviceSettings, environment: Mapping[str, str] = os.environ) -> Ranks | None:
    """The place that srun or torchrun has given this process; None if the harness has to start the processes itself.

    Raises:
        UserError: other processes were started than `devices` and `nodes` ask for.
    """
    wanted = device.devices * device.nodes
    if wanted == 1:
        return None
    found = _torchrun(environment) or _srun(environment)
    started = 1 if found is None else found.world_size
    if started == wanted:
        return found
    if device.nodes == 1 and started == 1:
        return None
    raise UserError(
        f"devices: {device.devices} on each of {device.nodes} nodes need {wanted} processes, but {started} "
        f"{'was' if started == 1 else 'were'} started; start them with srun --nodes={device.nodes} "
        f"--ntasks-per-node={device.devices}, or with torchrun."
    )


def _torchrun(environment: Mapping[str, str]) -> Ranks | None:
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK")
    rank, world_size, local_rank, node = (int(environment[name]) for name in names)
    return Ranks(
        rank, world_size, local_rank, node, environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    )


def _srun(environment: Mapping[str, str]) -> Ranks | None:
    if "SLURM_STEP_ID" not in environment or "SLURM_PROCID" not in environment:
        return None
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID")
    rank, world_size, local_rank, node = (int(environment[name]) for name in names)
    address = environment.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    if "SLURM_STEP_NODELIST" in environment:
        address = _first_host(environment["SLURM_STEP_NODELIST"])
    # Steps of one job, and jobs on one node, must not meet at the same port.
    port = 20000 + (37 * int(environment["SLURM_JOB_ID"]) + int(environment["SLURM_STEP_ID"])) % 20000
    return Ranks(rank, world_size, local_rank, node, address, port)


def _first_host(nodes: str) -> str:
    """`gpu[03-05,7],cpu1` → `gpu03`."""
    name, bracket, rest = nodes.partition("[")
    if not bracket or "," in name:
        return nodes.partition(",")[0]
    return name + rest.partition("]")[0].partition(",")[0].partition("-")[0]


class RankEnvironment(LightningEnvironment):
    """Tells Fabric where this process stands, whatever Slurm's or torchrun's variables say."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks

    @property
    def creates_processes_externally(self) -> bool:
        """Fabric starts no process."""
        return True

    @property
    def main_address(self) -> str:
        """Where rank 0 listens."""
        return self.ranks.address

    @property
    def main_port(self) -> int:
        """Where rank 0 listens."""
        return self.ranks.port

    def local_rank(self) -> int:
        """Within the node."""
        return self.ranks.local_rank

    def node_rank(self) -> int:
        """Number of the node."""
        return self.ranks.node


@cache
def _on_cpu() -> Any:
    """The group for small messages between CPUs, which does not wait for GPUs."""
    return distributed.new_group(backend="gloo")


def total_of(fabric: Fabric, counts: Sequence[float]) -> list[float]:
    """The sum of each number over all ranks."""
    return _reduced(fabric, counts, distributed.ReduceOp.SUM)


def highest(fabric: Fabric, numbers: Sequence[float]) -> list[float]:
    """The maximum of each number over all ranks."""
    return _reduced(fabric, numbers, distributed.ReduceOp.MAX)


def _reduced(fabric: Fabric, numbers: Sequence[float], operation: Any) -> list[float]:
    if fabric.world_size == 1:
        return list(numbers)
    found = torch.tensor(numbers, dtype=torch.float64)
    distributed.all_reduce(found, operation, group=_on_cpu())
    return found.tolist()


def broadcast(fabric: Fabric, value: ValueT) -> ValueT:
    """Rank 0's value, on all ranks; any object that can be pickled."""
    if fabric.world_size == 1:
        return value
    content = [value]
    distributed.broadcast_object_list(content, src=0, group=_on_cpu())
    return content[0]


def on_first(fabric: Fabric, run: Callable[[], ValueT]) -> ValueT:
    """Call `run` on rank 0 only; all ranks get its result, or raise what it raised."""
    if fabric.world_size == 1:
        return run()
    result: Any = None
    error: Exception | None = None
    if fabric.global_rank == 0:
        try:
            result = run()
        except Exception as raised:
            error = raised
    result, error = broadcast(fabric, (result, error))
    if error is not None:
        raise error
    return result


def gather(fabric: Fabric, value: ValueT) -> list[ValueT]:
    """The values of all ranks in their order, on rank 0; empty on the others."""
    if fabric.world_size == 1:
        return [value]
    found: list[Any] | None = [None] * fabric.world_size if fabric.global_rank == 0 else None
    distributed.gather_object(value, found, dst=0, group=_on_cpu())
    return found or []


def stop_together(fabric: Fabric, done: bool = False) -> None:
    """Stop an evaluation on all ranks if a signal has asked one of them to.

    Ranks may have different numbers of batches. Each calls this before every batch, and once with `done` after its
    last one, where it waits until all ranks are done.

    Raises:
        StopRequestedError: on all ranks, at the same batch.
    """
    waiting = True
    while waiting:
        stop, busy = highest(fabric, [REQUESTS.stop, not done])
        REQUESTS.stop = bool(stop)
        REQUESTS.check()
        waiting = done and bool(busy)


def sum_gradients(fabric: Fabric, model: nn.Module) -> None:
    """Replace each gradient by its sum over all ranks.

    A parameter without a gradient on every rank keeps none, as one of a skipped block.
    """
    if fabric.world_size == 1:
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    used = highest(fabric, [float(parameter.grad is not None) for parameter in trained])
    for bucket in _buckets(parameter for parameter, is_used in zip(trained, used, strict=True) if is_used):
        flat = torch.cat([_gradient(parameter).flatten() for parameter in bucket])
        distributed.all_reduce(flat)
        sums = flat.split([parameter.numel() for parameter in bucket])
        for parameter, summed in zip(bucket, sums, strict=True):
            parameter.grad = summed.view_as(parameter)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one type together, up to a size."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and (size + parameter.nbytes > _BUCKET_BYTES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.nbytes
    if bucket:
        yield bucket
