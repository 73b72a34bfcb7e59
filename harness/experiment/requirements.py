"""What cells need on GPUs that need not be here: memory, hours and disk, computed from shapes and stated assumptions.

Nothing is measured. A training step is run on torch's meta device, where tensors have shapes but no content. That gives
the bytes of all tensors that live at the same time and the multiply-accumulates of both passes. Hours follow from an
assumed GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.experiment.build import adapted_model
from harness.experiment.estimate import evaluation_passes
from harness.experiment.fitting import decide_unsearched
from harness.experiment.plan import Cell, Testbed
from harness.measure.flops import count_macs
from harness.measure.live import model_tensors, peak_live_tensors
from harness.training.model import TaskModel
from methods.base import Method
from tasks.base import Batch

GPU, PEAK_TFLOPS = "NVIDIA H100 SXM", {"32-true": 67.0, "bf16-mixed": 989.0, "16-mixed": 989.0}
"""The assumed GPU, and its highest rate by precision in 10^12 operations a second, as its maker states it."""

UTILISATION = 0.2
"""The assumed share of that rate that training and evaluation reach."""

COUNTED = (32, 64)
"""Two batch sizes whose difference in memory gives that of an example; in smaller ones gradients decide the peak."""

GIB = 2**30


@dataclass(frozen=True)
class Requirements:
    """What one cell needs.

    fixed_bytes: parameters and AdamW's states. example_bytes: activations of one training example.
    training_macs, forward_macs: of one training example in both passes; of one image-text pair.
    training_examples: that the cell trains on, search and all epochs. pairs: that it evaluates, validations included.
    test_pairs: of these in the final evaluation of the test split.
    disk_bytes: the tuned weights, and the checkpoint while the cell runs.
    """

    fixed_bytes: int
    example_bytes: int
    training_macs: int
    forward_macs: int
    training_examples: int
    pairs: int
    test_pairs: int
    disk_bytes: int

    def memory_gib(self, batch_size: int) -> float:
        """GiB on a device with this many examples at a time."""
        return (self.fixed_bytes + batch_size * self.example_bytes) / GIB

    def hours(self, precision: str) -> float:
        """Hours on one of the assumed GPUs."""
        operations = 2 * (self.training_macs * self.training_examples + self.forward_macs * self.pairs)
        return operations / (PEAK_TFLOPS[precision] * 1e12 * UTILISATION) / 3600


def requirements(cell: Cell) -> Requirements:
    """The requirements of a cell, at the measured image size and the longest texts, all in float32."""
    testbed, method = cell.testbed, cell.method()
    decide_unsearched(method, testbed.fresh_backbone())
    model = adapted_model(cell, method, in_four_bits=False).to("meta").train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    step_bytes = [_peak_bytes(testbed, model, examples) for examples in COUNTED]
    tuned = sum(parameter.nbytes for parameter in trained)
    training = testbed.training
    searched = method.search_epochs if training.budget == "epochs" else 0
    forward = _macs(cell, method, model, backward=False)
    return Requirements(
        # What a step needs without examples; AdamW keeps two more tensors for each that is trained.
        fixed_bytes=2 * step_bytes[0] - step_bytes[1] + 2 * tuned,
        example_bytes=(step_bytes[1] - step_bytes[0]) // (COUNTED[1] - COUNTED[0]),
        training_macs=_macs(cell, method, model, backward=True),
        forward_macs=forward // testbed.task.texts_per_example,
        training_examples=len(testbed.data.splits["train"]) * (training.epochs + searched),
        pairs=(training.epochs + 1) * evaluation_passes(testbed, ["val"])
        + evaluation_passes(testbed, ["test"]),
        test_pairs=evaluation_passes(testbed, ["test"]),
        # Tuned weights, and a checkpoint of parameters, both of AdamW's states and the best epoch's weights.
        disk_bytes=5 * tuned,
    )


def describe(cells: Sequence[Cell]) -> list[str]:
    """Lines that say what each method needs on each task, and from what the figures are computed."""
    found = list({(cell.label, id(cell.testbed)): cell for cell in cells}.values())
    lines = []
    for cell in found:
        testbed, needed = cell.testbed, requirements(cell)
        training = testbed.training
        size = training.micro_batch if isinstance(training.micro_batch, int) else training.batch_size
        seeds = sum((other.label, id(other.testbed)) == (cell.label, id(testbed)) for other in cells)
        hours = needed.hours(training.precision)
        lines += [
            f"{cell.label} on {testbed.task.name}: {needed.fixed_bytes / GIB:.2f} GiB for the model and "
            f"{needed.example_bytes / GIB:.3f} GiB an example; {needed.disk_bytes / GIB:.2f} GiB of disk",
            f"  training {needed.training_macs / 1e9:,.1f} G MACs × {needed.training_examples:,} examples, evaluation "
            f"{needed.forward_macs / 1e9:,.1f} G × {needed.pairs:,} pairs ({needed.test_pairs:,} in the final test)",
            f"  one GPU: {needed.memory_gib(size):.1f} GiB, {hours:.1f} h a cell",
            f"  eight GPUs (--devices 8): {needed.memory_gib(-(-size // 8)):.1f} GiB on each, {hours / 8:.1f} h a cell",
            f"  Slurm, one job with one GPU per cell: {seeds} × {hours:.1f} GPU hours",
        ]
    shape = found[0].testbed.measured_input
    precision = found[0].testbed.training.precision
    height, width = shape.image_size
    lines.append(
        "Computed, not measured: live tensors and MACs of a step on the meta device, in float32, at "
        f"{height}x{width} pixels and {shape.text_length} tokens. Memory includes attention scores, "
        "which fused kernels do not keep, so it may be less on a GPU. Decoding of images, communication and "
        f"encodings from the cache are left out. Hours assume {UTILISATION:.0%} of the {PEAK_TFLOPS[precision]:g} "
        f"TFLOP/s of an {GPU} in {precision}."
    )
    return lines


def _batch(testbed: Testbed, examples: int) -> Batch:
    """Inputs of some training examples without content."""
    shape, generator = testbed.measured_input, torch.Generator().manual_seed(0)
    texts = testbed.task.texts_per_example
    inputs = testbed.backbone.example_inputs(examples, shape.text_length, shape.image_size, generator)
    inputs = replace(inputs, input_ids=inputs.input_ids.repeat_interleave(texts, 0)).to(torch.device("meta"))
    parts = tuple(replace(inputs, image_token_type=1 + k) for k in range(testbed.task.images_per_example))
    return Batch(parts, None, tuple(map(str, range(examples))))


def _step(testbed: Testbed, model: TaskModel, examples: int, backward: bool) -> None:
    batch = _batch(testbed, examples)
    with torch.set_grad_enabled(backward):
        logits: Tensor = model(batch)
        if backward:
            logits.sum().backward()
            model.zero_grad(set_to_none=True)


def _peak_bytes(testbed: Testbed, model: TaskModel, examples: int) -> int:
    peak = peak_live_tensors(lambda: _step(testbed, model, examples, True), model_tensors(model), "meta")
    return int(peak.peak_mib * 2**20)


def _macs(cell: Cell, method: Method[Any], model: TaskModel, backward: bool) -> int:
    shape = cell.testbed.measured_input
    counted = count_macs(
        model.backbone,
        model.head,
        lambda: _step(cell.testbed, model, 1, backward),
        method.method_modules(model.backbone),
        text_length=shape.text_length,
        image_size=shape.image_size,
    )
    return counted.macs_total
