"""Multiply-accumulates of a forward pass by component, counted on the operators that torch runs.

Papers of this field report multiply-accumulates (MACs) under the name "FLOPs", some with 5 more for each element
that a LayerNorm normalises. Both are counted: `macs` are matrix products, convolutions and attention only
(`harness.measure.operators`), `layer_norm_elements` are counted separately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness.backbones.base import Backbone
from harness.backbones.folded import inserted_in
from harness.backbones.generative import GenerativeBackbone
from harness.backbones.kernels import only_operators
from harness.measure.decoding import Decoding, next_token
from harness.measure.operators import FORMULAS, operator_macs
from methods.base import Method
from tasks.base import Batch

METHOD, HEAD = "method", "head"
OTHER = "other"
"""Operations outside every component: not in its modules and without its parameters."""
BACKWARD = "backward"
"""Operations of autograd, whose module is unknown."""
LAYER_NORM_MACS_PER_ELEMENT = 5


@dataclass(frozen=True)
class ComputeCounts:
    """Cost of one pass at the stated input (batch, text length in tokens, image height and width in pixels).

    macs, layer_norm_elements: by component: the backbone's own, "method" and "head"; "other" and "backward" only
        if they occur. "method" is the cost inside the method's modules. Work that it adds to other modules, as
        prompts do, counts as theirs.
    decoding: cost of what a generative backbone writes after the prompt that `macs` count; None for other backbones.
    """

    macs: Mapping[str, int]
    layer_norm_elements: Mapping[str, int]
    text_length: int
    image_size: tuple[int, int]
    batch_size: int = 1
    decoding: Decoding | None = None

    @property
    def macs_total(self) -> int:
        """Multiply-accumulates of all components."""
        return sum(self.macs.values())

    @property
    def flops_total(self) -> int:
        """Floating-point operations: two per multiply-accumulate."""
        return 2 * self.macs_total

    @property
    def with_layer_norm_total(self) -> int:
        """MACs plus 5 per normalised element, the convention of DAS's −11.97 % on METER."""
        return self.macs_total + LAYER_NORM_MACS_PER_ELEMENT * sum(self.layer_norm_elements.values())


class ForwardsBatches(Protocol):
    """The part of a task that counting needs."""

    @property
    def images_per_example(self) -> int:
        """Images that a forward pass of one example reads."""

    def forward(self, backbone: Backbone, head: nn.Module, batch: Batch) -> Tensor:
        """Logits of a batch."""


def count_forward(
    task: ForwardsBatches,
    backbone: Backbone,
    head: nn.Module,
    method: Method[Any] | None,
    *,
    image_size: tuple[int, int],
    text_length: int,
    batch_size: int = 1,
) -> ComputeCounts:
    """Count one inference pass of the task on the model's device (`meta` computes nothing).

    image_size: height and width in pixels. An example has `task.images_per_example` images, with
    token types 1, 2, …; inputs are random and unpadded.
    """
    generator = torch.Generator().manual_seed(0)
    device = next(backbone.parameters()).device
    parts = tuple(
        replace(
            backbone.example_inputs(batch_size, text_length, image_size, generator).to(device),
            image_token_type=1 + index,
        )
        for index in range(task.images_per_example)
    )
    batch = Batch(parts, None, tuple(str(index) for index in range(batch_size)))

    def run() -> Tensor:
        return task.forward(backbone, head, batch)

    modules = method.method_modules(backbone) if method is not None else ()

    def count(run: Callable[[], object]) -> ComputeCounts:
        return count_macs(
            backbone,
            head,
            run,
            modules,
            text_length=text_length,
            image_size=image_size,
            batch_size=batch_size,
        )

    with _evaluating(backbone), _evaluating(head), torch.no_grad():
        counts = count(run)
        if not isinstance(backbone, GenerativeBackbone):
            return counts
        before = backbone.prefill(batch.inputs)
        decoding = Decoding(
            prompt_tokens=before.prompt.hidden.shape[1],
            token_macs=count(next_token(backbone, before)).macs_total,
            cache_bytes=before.past.nbytes,
            precision=str(before.hidden.dtype).removeprefix("torch."),
        )
        return replace(counts, decoding=decoding)


def count_macs(
    backbone: Backbone,
    head: nn.Module,
    run: Callable[[], object],
    method_modules: Sequence[nn.Module],
    *,
    text_length: int,
    image_size: tuple[int, int],
    batch_size: int = 1,
) -> ComputeCounts:
    """Call `run` once and count what it computes; the stated input is only recorded.

    `run` may end in a backward pass, which is counted as one component, "backward".

    Raises:
        MeasurementError: `run` called an operator that multiplies matrices and has no formula.
    """
    components = {**backbone.components(), HEAD: [head], METHOD: list(method_modules)}
    counter = _Counter(components, inserted_in(backbone, but=method_modules))
    with only_operators(), counter.watching(), counter:
        run()
    return ComputeCounts(counter.macs, counter.layer_norm_elements, text_length, image_size, batch_size)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Intercepts every operator below autograd and adds its cost to a component."""

    def __init__(self, components: Mapping[str, Sequence[nn.Module]], inserted: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = dict.fromkeys(components, 0)
        self.layer_norm_elements = dict.fromkeys(components, 0)
        # Inner modules too: a backbone may call a component's parts without calling the component. Later
        # components override earlier ones: the method's modules count as "method" wherever they are inserted.
        self._labels = {
            inner: name
            for name, modules in components.items()
            for module in modules
            for inner in module.modules()
        }
        self._owner = {
            _storage(parameter): name
            for module, name in self._labels.items()
            for parameter in module.parameters(recurse=False)
        }
        self._inserted: dict[int, list[Tensor]] = {}
        for view in inserted:
            if view.nbytes == view.untyped_storage().nbytes():
                self._owner[_storage(view)] = METHOD
            else:
                self._inserted.setdefault(_storage(view), []).append(view)
        self._stack: list[str] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Track which component's module is being called."""
        handles = []
        for module, name in self._labels.items():
            handles.append(module.register_forward_pre_hook(self._entering(name), prepend=True))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _module, _args: self._stack.append(name)

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self._stack.pop()

    def _component(self, args: Sequence[Any]) -> tuple[str, Tensor | None]:
        """The component of a call, and the weight that determines it, if any."""
        if torch._C._current_graph_task_id() != -1:
            return BACKWARD, None
        if METHOD in self._stack:
            return METHOD, None
        # A functional call with a component's weight, outside its modules (ViLT's patch projection). The
        # weight is the last operand of a product; activations have their own storages.
        for argument in reversed(args):
            if isinstance(argument, Tensor) and _storage(argument) in self._owner:
                return self._owner[_storage(argument)], argument
        return (self._stack[-1] if self._stack else OTHER), None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket not in FORMULAS:
            # Composite operators are not decomposed yet in inference mode.
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self._add(self.macs, operator_macs(func, args, out), args)
        if func.overloadpacket is torch.ops.aten.native_layer_norm:
            self._add(self.layer_norm_elements, args[0].numel(), args)
        return out

    def _add(self, counts: dict[str, int], amount: int, args: Sequence[Any]) -> None:
        if not amount:
            return
        component, weight = self._component(args)
        share = 0
        if (
            weight is not None
        ):  # MACs of a matrix that method and backbone share are split by their parts of it
            views = self._inserted.get(_storage(weight), ())
            share = sum(amount * common_elements(weight, view) // weight.numel() for view in views)
        for name, part in ((component, amount - share), (METHOD, share)):
            if part:
                counts[name] = counts.get(name, 0) + part


def common_elements(one: Tensor, other: Tensor) -> int:
    """Number of elements that two rectangular views of a matrix `(rows, columns)` share; either may be transposed.

    0 for vectors.
    """
    if one.dim() != 2 or other.dim() != 2:
        return 0
    (rows, columns), (other_rows, other_columns) = _rectangle(one), _rectangle(other)
    return _overlap(rows, other_rows) * _overlap(columns, other_columns)


def _rectangle(view: Tensor) -> tuple[range, range]:
    """The rows and the columns of the matrix that a view covers."""
    if view.stride(0) < view.stride(1):
        view = view.t()
    top, left = divmod(int(view.storage_offset()), view.stride(0))
    return range(top, top + view.shape[0]), range(left, left + view.shape[1])


def _overlap(one: range, other: range) -> int:
    return max(0, min(one.stop, other.stop) - max(one.start, other.start))


def _storage(tensor: Tensor) -> int:
    """Identity of a tensor's memory, shared with its views; on the `meta` device as well."""
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards every submodule gets its former mode back."""
    modes = {inner: inner.training for inner in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for inner, training in modes.items():
            inner.training = training
