"""Peak memory of live tensors, exact and equal on every machine.

The resident set of a process on a CPU includes memory that the allocator keeps from earlier work. So the storage of
every tensor is tracked instead, from the operator that creates it until nothing refers to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.measure.memory import MIB, PeakMemory


class _Watcher(TorchDispatchMode):
    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self._held = {StorageWeakRef(each): each.nbytes() for each in map(Tensor.untyped_storage, held)}
        self._made: dict[StorageWeakRef, int] = {}
        # Between two calls of `_drop_freed`, `_bytes` is an upper limit.
        self.baseline = self.peak = self._bytes = sum(self._held.values())

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference not in self._held and reference not in self._made:
            self._made[reference] = storage.nbytes()
            self._bytes += storage.nbytes()

    def _drop_freed(self) -> None:
        for reference in [each for each in self._made if each.expired()]:
            self._bytes -= self._made.pop(reference)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._track(leaf)
        if self._bytes > self.peak:
            self._drop_freed()
            self.peak = max(self.peak, self._bytes)
        return out


def peak_live_tensors(run: Callable[[], object], held: Iterable[Tensor], how: str) -> PeakMemory:
    """Peak memory of one call of `run`, in MiB.

    Workspace inside an operator, such as the packing buffers of a matrix product, is not counted.

    held: tensors that exist before the call (weights, optimiser states); their bytes are the baseline.
    how: description of the measurement, copied to the result.
    """
    watcher = _Watcher(held)
    with watcher:
        run()
    return PeakMemory(watcher.baseline / MIB, watcher.peak / MIB, how)


def model_tensors(model: torch.nn.Module) -> list[Tensor]:
    """Parameters and buffers of a model."""
    return [*model.parameters(), *model.buffers()]
