"""Latencies of deployed models, their share of the rate of matrix products, and rates of training."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbones.folding import fold
from harness.backbones.inputs import Inputs
from harness.backbones.kernels import only_operators
from harness.config.sources import make_settings
from harness.measure.latency import LatencySample, graphed, measure_latency
from harness.training.fabric import make_fabric
from harness.training.optim import build_optimizer, build_schedule
from tests.gpu.models import (
    CUDA,
    FULL_SIZE,
    TEXT_LENGTH,
    adapted,
    batch_of,
    deployed,
    forward_of,
    full_size,
    macs_of,
)
from tests.gpu.report import Report
from tests.support.gemm import gemm_cycle, transformer_shapes

HALF = torch.bfloat16
ANSWERS = 3129
VILT = {
    "untouched": "full",
    "lora": "lora",
    "parallel": "parallel",
    "das 2": "das[blocks=2+7]",
    "das 4": "das[blocks=2+5+7+9]",
}
METER = {"untouched": "full", "das 2 + 2": "das[blocks=text.1+text.3+image.1+image.3]"}


def latency(report: Report) -> None:
    """Deployed full-size models with bf16 weights; each against the untouched backbone, which is folded too."""
    for name, specs in (("vilt", VILT), ("meter", METER)):
        _latencies(report, name, specs)
        torch.cuda.empty_cache()


def _latencies(report: Report, name: str, specs: dict[str, str]) -> None:
    models = {label: deployed(name, spec, HALF) for label, spec in specs.items()}
    first = next(iter(models))
    for size in (1, 16, 64):
        batch = batch_of(name, models[first].backbone, size, HALF, TEXT_LENGTH)
        eager = {label: forward_of(model, batch) for label, model in models.items()}
        macs = {label: macs_of(model, eager[label]) for label, model in models.items()}
        report.line(
            f"{name}, batch {size}, MACs: {_shares({key: float(n) for key, n in macs.items()}, 1e9, 'G')}"
        )
        for how, convert in (("eager", lambda run: run), ("graph", lambda run: graphed(run, CUDA))):
            runs = {label: convert(run) for label, run in eager.items()}
            samples = measure_latency(runs, CUDA, min_iterations=20, min_seconds=0.25)
            report.line(f"{name}, bf16 weights, batch {size}, {how}: {_medians(samples)}")
            if how == "graph":
                report.line(f"{name}, batch {size}, saved time / saved MACs: {_saved(samples, macs)}")
        with only_operators():
            last = next(reversed(eager))
            runs = {label: graphed(eager[label], CUDA) for label in (first, last)}
        samples = measure_latency(runs, CUDA, min_iterations=20, min_seconds=0.25)
        report.line(f"{name}, batch {size}, graph of torch's operators alone: {_medians(samples)}")


def _saved(samples: dict[str, LatencySample], macs: dict[str, int]) -> str:
    base = next(iter(samples))
    texts = []
    for label, sample in samples.items():
        promised = 1 - macs[label] / macs[base]
        if promised > 0.01:
            texts.append(f"{label} {(1 - sample.p50 / samples[base].p50) / promised:.2f}")
    return ", ".join(texts)


def _medians(samples: dict[str, LatencySample]) -> str:
    return _shares({label: one.p50 for label, one in samples.items()}, 1, " ms")


def _shares(values: dict[str, float], unit: float, name: str) -> str:
    base = next(iter(values.values()))
    return ", ".join(
        f"{label} {value / unit:.3f}{name} ({value / base:.3f})" for label, value in values.items()
    )


def gemm_share(report: Report) -> None:
    """The forward pass of full-size ViLT against its matrix products and against Hugging Face's `ViltModel`."""
    from tests.benchmarks.test_vilt_speed import hugging_face

    backbone: Any = full_size("vilt")
    theirs = hugging_face(backbone)
    theirs.embeddings.text_embeddings.LayerNorm.eps = 1e-12
    theirs = theirs.to(CUDA, HALF)
    fold(backbone)
    ours = backbone.requires_grad_(False).to(CUDA, HALF)
    tokens = FULL_SIZE["vilt"][0] * FULL_SIZE["vilt"][1] // 32**2 + 1 + TEXT_LENGTH
    for size in (1, 16, 64):
        batch = batch_of("vilt", ours, size, HALF, TEXT_LENGTH)
        inputs = batch.inputs[0]
        shapes = transformer_shapes(size * tokens, 768, 3072, blocks=12)

        def forward(inputs: Inputs = inputs) -> object:
            with torch.inference_mode():
                return ours(inputs)

        def plain(inputs: Inputs = inputs) -> object:
            with torch.inference_mode():
                return theirs(input_ids=inputs.input_ids, pixel_values=inputs.pixels).pooler_output

        runs = {
            "GEMM, graph": graphed(gemm_cycle(shapes, CUDA, HALF), CUDA),
            "ours, graph": graphed(forward, CUDA),
            "ours, eager": forward,
            "Hugging Face, eager": plain,
        }
        samples = measure_latency(runs, CUDA, min_iterations=10, min_seconds=0.25)
        macs = _macs_of_backbone(ours, forward)
        gemm_rate = sum(shape.macs for shape in shapes) / samples["GEMM, graph"].p50
        share = macs / samples["ours, graph"].p50 / gemm_rate
        factor = samples["Hugging Face, eager"].p50 / samples["ours, graph"].p50
        eager = samples["Hugging Face, eager"].p50 / samples["ours, eager"].p50
        report.line(
            f"vilt, bf16, batch {size}: {share:.3f} of the GEMM rate ({2 * gemm_rate / 1e9:.0f} TFLOP/s); "
            f"Hugging Face takes {factor:.2f} of our graph, {eager:.2f} of our eager pass; {_medians(samples)}"
        )


def _macs_of_backbone(backbone: Any, run: Callable[[], object]) -> int:
    from harness.measure.flops import count_macs

    counts = count_macs(backbone, nn.Identity(), run, (), text_length=TEXT_LENGTH, image_size=(1, 1))
    return counts.macs_total


def training(report: Report, size: int = 64, seconds: float = 4.0) -> None:
    """Examples per second of LoRA on full-size ViLT, bf16 autocast, on a batch that stays on the GPU."""
    rates = {}
    for label, compiled in (("ours, eager", False), ("ours, compiled", True)):
        with report.section(f"training: {label}"):
            rates[label] = _rate_of(report, label, _our_step(size, compiled), size, seconds)
    with report.section("training: Hugging Face + peft"):
        rates["Hugging Face + peft"] = _rate_of(
            report, "Hugging Face + peft", _their_step(size), size, seconds
        )
    theirs = rates.get("Hugging Face + peft")
    if theirs is not None:
        report.line(
            ", ".join(f"{label}: {rate / theirs:.2f} of Hugging Face's" for label, rate in rates.items())
        )


def _rate_of(report: Report, label: str, step: Callable[[], object], size: int, seconds: float) -> float:
    started = time.perf_counter()
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    warm = time.perf_counter() - started
    torch.cuda.reset_peak_memory_stats()
    rate = size / _seconds_of(step, seconds)
    memory = torch.cuda.max_memory_allocated() / 2**30
    report.line(
        f"LoRA on full-size ViLT, bf16, batch {size}, resident: {label} {rate:.0f} examples/s, {memory:.2f} GiB, "
        f"first three steps {warm:.1f} s"
    )
    return rate


def _seconds_of(step: Callable[[], object], seconds: float) -> float:
    """Mean time of a step, queued without waiting, over at least `seconds`."""
    taken: list[float] = []
    while sum(taken) < seconds:
        started = time.perf_counter()
        for _ in range(5):
            step()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken)) / 5


def _our_step(size: int, compiled: bool) -> Callable[[], object]:
    _, model = adapted("lora", full_size("vilt"))
    settings = make_settings(methods="lora", tasks="vqa", precision="bf16-mixed", accelerator="cuda")
    fabric = make_fabric(settings)
    if compiled:
        for block in model.backbone.blocks:
            block.forward = torch.compile(block.forward)  # type: ignore[method-assign]
    resolved = settings.training.resolved(1, size, 1e-3)
    optimizer = build_optimizer(model, resolved, 1e-3, 1e-3)
    schedule = build_schedule(optimizer, 10_000, 0.1)
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    wrapped.train()
    batch = batch_of("vilt", model.backbone, size, torch.float32, 20)
    targets = torch.rand(size, ANSWERS, device=CUDA)

    def step() -> None:
        fabric.backward(model.task.loss(wrapped(batch), targets))
        wrapped_optimizer.step()
        wrapped_optimizer.zero_grad(set_to_none=True)
        schedule.step()

    return step


def _their_step(size: int) -> Callable[[], object]:
    """What `Trainer` does in a step, on `ViltForQuestionAnswering` with peft's LoRA."""
    from peft import LoraConfig, get_peft_model
    from transformers import ViltConfig, ViltForQuestionAnswering

    config = ViltConfig(num_labels=ANSWERS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    lora = LoraConfig(r=4, lora_alpha=4, lora_dropout=0.0, target_modules=["query", "value"])
    model: Any = get_peft_model(ViltForQuestionAnswering(config), lora).to(CUDA).train()
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("classifier", "pooler", "token_type")):
            parameter.requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20_000, (size, 20), generator=generator).to(CUDA)
    batch: dict[str, Tensor] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(size, 3, *FULL_SIZE["vilt"], generator=generator).to(CUDA),
        "pixel_mask": torch.ones(size, *FULL_SIZE["vilt"], dtype=torch.long, device=CUDA),
    }
    targets = torch.rand(size, ANSWERS, device=CUDA)

    def step() -> None:
        with torch.autocast("cuda", HALF):
            logits = model(**batch).logits
            loss = F.binary_cross_entropy_with_logits(logits, targets) * ANSWERS
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    return step
