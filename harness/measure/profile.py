"""Costs of methods on a backbone, from shapes alone: without weights, data or computation.

Models are built on torch's `meta` device, adapted, counted, finalised and run once to see their operators. So even a
backbone with hundreds of millions of parameters takes almost no memory or time. Only latency needs a real model, with
random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone, BackboneOptions
from harness.backbones.generative import GenerativeBackbone
from harness.errors import UserError
from harness.measure.decoding import next_token
from harness.measure.flops import ComputeCounts, count_forward
from harness.measure.latency import Execution, LatencySample, executions, measure_latency
from harness.measure.parameters import ParameterCounts, count_parameters
from harness.registry import REFERENCE_METHOD, build_method, build_task, resolve_backbone
from harness.specs import Spec, canonical
from methods.base import Decision, Method
from tasks.base import Batch, Task

REFERENCE = Spec(REFERENCE_METHOD)
"""The method that all changes are relative to."""


@dataclass(frozen=True)
class Setting:
    """A task's forward pass on a backbone at a stated input.

    image_size: height and width in pixels. text_length: tokens, special ones included.
    """

    backbone: str
    task: Task[Any]
    image_size: tuple[int, int]
    text_length: int

    def load(self, device: str) -> Backbone:
        """A new backbone with random weights, made on `device`."""
        with torch.device(device):
            return _load(self.backbone, min(self.image_size), self.text_length)


@dataclass(frozen=True)
class Case:
    """One form of a method. decision: the assumed result of its search."""

    label: str
    spec: Spec
    decision: Decision | None = None

    def method(self) -> Method[Any]:
        """A new instance, with the decision applied."""
        method = build_method(self.spec)
        if self.decision is not None:
            method.decide(self.decision)
        return method


@dataclass(frozen=True)
class Row:
    """Costs of one case: parameters in training, parameters and compute when finalised.

    uncounted: trained parameters that the authors' count of the method leaves out.
    """

    case: Case
    trained: ParameterCounts
    deployed: ParameterCounts
    compute: ComputeCounts
    uncounted: int = 0


@dataclass(frozen=True)
class Profile:
    """Rows of one setting, the reference first. latency: by label, if it was measured, each way of running.

    unread: parameters that papers count and no forward pass reads (`Backbone.unread_parameters`).
    left_out: methods that do not fit the backbone.
    """

    setting: Setting
    rows: tuple[Row, ...]
    latency: Mapping[str, tuple[LatencyPair, ...]]
    unread: int = 0
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class LatencyPair:
    """Latencies of a case and of the reference, measured interleaved, in ms.

    part: "pass", or on a generative backbone "prompt" or "token" (one more token after the prompt).
    """

    batch_size: int
    execution: Execution
    case: LatencySample
    reference: LatencySample
    part: str = "pass"


def make_setting(backbone: str, task: Spec, image_size: tuple[int, int] | None, text_length: int) -> Setting:
    """The setting of a task. The image size defaults to the published one, or else the backbone's.

    Raises:
        UserError: no such task or backbone, or the backbone cannot read inputs of this size.
    """
    built = build_task(task)
    built.without_data()
    if image_size is None:
        with torch.device("meta"):
            loaded = _load(backbone, None, text_length)
        side = loaded.published_image_size(built.images_per_example)
        if side is None:
            side = int(loaded.processor.describe()["image_size"])
        image_size = (side, side)
    return Setting(backbone, built, image_size, text_length)


def _load(backbone: str, image_size: int | None, text_length: int) -> Backbone:
    options = BackboneOptions(weights="random", image_size=image_size, text_length=text_length)
    return resolve_backbone(backbone)(options)


def profile_setting(
    setting: Setting,
    specs: Iterable[Spec],
    *,
    latency_on: torch.device | None = None,
    batch_sizes: Sequence[int] = (1,),
    leave_out: bool = False,
    on_case: Callable[[str], None] = lambda label: None,
) -> Profile:
    """Count every method of `specs`, the reference first.

    latency_on: device on which latencies are measured, at each of `batch_sizes`; None: not at all.
    leave_out: leave out methods that do not fit the backbone, instead of raising an error.
    on_case: called with each case's label before it is counted or timed.

    Raises:
        UserError: a method or its options do not fit the backbone.
    """
    reference = Case(canonical(REFERENCE), REFERENCE)
    backbone = setting.load("meta")

    def count(case: Case) -> Row:
        on_case(case.label)
        return count_case(setting, case)

    rows, left_out = [count(reference)], []
    for spec in specs:
        if spec == REFERENCE:
            continue
        try:
            rows += [count(case) for case in find_cases(spec, backbone)]
        except UserError:
            if not leave_out:
                raise
            left_out.append(canonical(spec))
    cases = [row.case for row in rows[1:]]
    pairs: dict[str, tuple[LatencyPair, ...]] = {}
    if latency_on is not None:
        for case in cases:
            on_case(f"{case.label}, latency")
            pairs[case.label] = tuple(time_case(setting, case, reference, latency_on, batch_sizes, on_case))
    return Profile(setting, tuple(rows), pairs, backbone.unread_parameters, tuple(left_out))


def find_cases(spec: Spec, backbone: Backbone) -> Iterator[Case]:
    """The method's forms with different costs (`Method.cost_cases`)."""
    for case in build_method(spec).cost_cases(backbone):
        label = f"{canonical(spec)}, {case.name}" if case.name else canonical(spec)
        yield Case(label, spec, case.decision)


def count_case(setting: Setting, case: Case) -> Row:
    """Parameters and compute of one case, on the meta device."""
    method, backbone, head = _adapted(setting, case, "meta")
    trained = count_parameters(backbone, head, method.method_modules(backbone))
    token = backbone.prompt if method.uncounted else None
    uncounted = 0 if token is None else sum(parameter.numel() for parameter in token.parameters())
    method.finalize(backbone)
    return Row(
        case,
        trained,
        count_parameters(backbone, head, method.method_modules(backbone)),
        count_forward(
            setting.task,
            backbone,
            head,
            method,
            image_size=setting.image_size,
            text_length=setting.text_length,
        ),
        uncounted,
    )


def _adapted(setting: Setting, case: Case, device: str) -> tuple[Method[Any], Backbone, nn.Module]:
    generator = torch.Generator().manual_seed(0)
    method, backbone = case.method(), setting.load(device)
    method.adapt(backbone, generator)
    head = setting.task.build_head(backbone, generator)
    return method, backbone.to(device).eval(), head.to(device).eval()


def time_case(
    setting: Setting,
    case: Case,
    reference: Case,
    device: torch.device,
    batch_sizes: Sequence[int],
    on_failure: Callable[[str], None] = lambda text: None,
) -> Iterator[LatencyPair]:
    """Latency of both finalised models with random weights, interleaved. Only these two are in memory.

    Weights are float32 on the CPU and bfloat16 on CUDA.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    models = {each.label: _deployed(setting, each, device, dtype) for each in (case, reference)}
    for size in batch_sizes:
        parts = {label: _parts(setting, *model, size, dtype) for label, model in models.items()}
        for part in parts[case.label]:
            eager = {label: runs[part] for label, runs in parts.items()}
            for execution, runs in executions(eager, device, on_failure).items():
                least = 5 if size == 1 else 3
                samples = measure_latency(runs, device, min_iterations=least, warmup=2)
                yield LatencyPair(size, execution, samples[case.label], samples[reference.label], part)


def _deployed(
    setting: Setting, case: Case, device: torch.device, dtype: torch.dtype
) -> tuple[Backbone, nn.Module]:
    method, backbone, head = _adapted(setting, case, "cpu")
    method.finalize(backbone)
    return backbone.to(device, dtype), head.to(device, dtype)


def _parts(
    setting: Setting, backbone: Backbone, head: nn.Module, size: int, dtype: torch.dtype
) -> dict[str, Callable[[], Tensor]]:
    """What is timed, ready to be called: a forward pass of the task, or of its prompts and of one more token."""
    generator = torch.Generator().manual_seed(0)
    device = next(backbone.parameters()).device
    images = []
    for _ in range(setting.task.images_per_example):
        inputs = backbone.example_inputs(size, setting.text_length, setting.image_size, generator).to(device)
        images.append(replace(inputs, pixels=inputs.pixels.to(dtype)))
    batch = Batch(tuple(images), None, tuple(map(str, range(size))))
    whole = torch.inference_mode()(partial(setting.task.forward, backbone, head, batch))
    if not isinstance(backbone, GenerativeBackbone):
        return {"pass": whole}
    with torch.inference_mode():
        token = next_token(backbone, backbone.prefill(batch.inputs))
    return {"prompt": whole, "token": torch.inference_mode()(token)}
