"""Full-size ViLT, folded, against this machine's own GEMM rate, against Hugging Face, and with blocks skipped.

    pytest -o addopts= tests/benchmarks/test_vilt_speed.py -s            (-k batch1 for batch 1 only)

Everything of a table is measured in one interleaved run, on random weights, 384×576 pixels, 40 tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from transformers import ViltModel

from harness.backbones.folding import fold
from harness.backbones.inputs import Inputs
from harness.backbones.vilt.loading import full_size_config
from harness.backbones.vilt.model import ViltBackbone
from harness.backbones.vilt.processor import ViltProcessor
from harness.measure.flops import count_macs
from harness.measure.latency import LatencySample, latency_ratio, measure_latency
from harness.process import prepare_process
from methods.das import DAS, DASOptions
from tests.support.gemm import gemm_cycle, transformer_shapes

IMAGE, TEXT = (384, 576), 40
TOKENS = IMAGE[0] * IMAGE[1] // 32**2 + 1 + TEXT
MIN_ITERATIONS, MIN_SECONDS = 25, 10.0


@dataclass(frozen=True)
class Contestant:
    run: Callable[[], object]
    macs: int


def build() -> ViltBackbone:
    torch.manual_seed(0)
    config = full_size_config()
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return ViltBackbone(config, ViltProcessor(None, 384, 32, TEXT)).eval()


def hugging_face(backbone: ViltBackbone) -> ViltModel:
    """Hugging Face's `ViltModel` with the same, shared weights."""
    model = ViltModel(full_size_config()).eval()
    model.embeddings.text_embeddings.LayerNorm.eps = 1e-12
    model.load_state_dict(backbone.model.state_dict(), assign=True)
    return model


def with_das(backbone: ViltBackbone, skipped: int) -> ViltBackbone:
    """The deployed form of DAS on the same, shared weights; the skipped blocks are spread over the depth."""
    adapted = copy.deepcopy(backbone, {id(p): p for p in backbone.parameters()})
    chosen = tuple(str(round((i + 0.5) * 12 / skipped)) for i in range(skipped))
    method = DAS(DASOptions(blocks=chosen))
    method.adapt(adapted, torch.Generator().manual_seed(0))
    method.finalize(adapted)
    return adapted.eval()


def inference(model: nn.Module, *args: object, **kwargs: object) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return model(*args, **kwargs)

    return run


def in_mixed_precision(run: Callable[[], object]) -> Callable[[], object]:
    """As `--precision bf16-mixed` does."""
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")

    def mixed() -> object:
        with fabric.autocast():
            return run()

    return mixed


def macs_of(backbone: ViltBackbone, inputs: Inputs) -> int:
    counts = count_macs(
        backbone,
        nn.Identity(),
        inference(backbone, inputs),
        (),
        text_length=TEXT,
        image_size=IMAGE,
        batch_size=len(inputs),
    )
    return counts.macs_total


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("batch", [1, 4], ids=lambda batch: f"batch{batch}")
def test_vilt_runs_at_the_rate_of_its_matrix_products(batch: int, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_process()  # as every process does that runs cells; all contestants profit
    device = torch.device("cpu")
    ours = build()
    inputs = ours.example_inputs(batch, TEXT, IMAGE, torch.Generator().manual_seed(0))
    theirs = hugging_face(ours)
    das = {skipped: with_das(ours, skipped) for skipped in (2, 4)}
    fold(ours)
    own_macs = macs_of(ours, inputs)
    distinct = transformer_shapes(batch * TOKENS, 768, 3072, blocks=12)
    one_block = transformer_shapes(batch * TOKENS, 768, 3072)
    contestants = {
        "GEMM, 12 blocks' weights": Contestant(gemm_cycle(distinct, device), sum(s.macs for s in distinct)),
        "GEMM, one block's weights": Contestant(
            gemm_cycle(one_block, device), sum(s.macs for s in one_block)
        ),
        "ours": Contestant(inference(ours, inputs), own_macs),
        "Hugging Face": Contestant(
            inference(theirs, input_ids=inputs.input_ids, pixel_values=inputs.pixels), own_macs
        ),
        "ours, bf16-mixed": Contestant(in_mixed_precision(inference(ours, inputs)), own_macs),
        **{
            f"DAS, {skipped} of 12 skipped": Contestant(inference(model, inputs), macs_of(model, inputs))
            for skipped, model in das.items()
        },
    }
    with torch.inference_mode():
        reference = theirs(input_ids=inputs.input_ids, pixel_values=inputs.pixels).pooler_output
        torch.testing.assert_close(ours(inputs), reference, atol=1e-4, rtol=0)

    samples = measure_latency(
        {name: contestant.run for name, contestant in contestants.items()},
        device,
        min_iterations=MIN_ITERATIONS,
        min_seconds=MIN_SECONDS / 12,  # of the shortest contestant, a twelfth of the others
        warmup=2,
    )
    with capsys.disabled():
        print_table(batch, contestants, samples)
        print_verdicts(contestants, samples)


def rate(contestant: Contestant, sample: LatencySample) -> float:
    """Multiply-accumulates per second at the median."""
    return 1000 * contestant.macs / sample.p50


def print_table(batch: int, contestants: dict[str, Contestant], samples: dict[str, LatencySample]) -> None:
    first = next(iter(samples.values()))
    where = f"{IMAGE[0]}x{IMAGE[1]}, text {TEXT}, batch {batch}, {first.threads} thread(s), n = {first.n}"
    columns = f"{'':28}{'p50 ms':>9}{'p90 ms':>9}{'GMACs':>8}{'GMACs/s':>9}{'of GEMM':>9}"
    print(f"\nViLT-B/32, {where}\n{columns}  time / ours [95 %]   MACs / ours")
    gemm = rate(next(iter(contestants.values())), first)
    for name, contestant in contestants.items():
        sample = samples[name]
        speed = rate(contestant, sample)
        line = (
            f"{name:28}{sample.p50:9.1f}{sample.p90:9.1f}{contestant.macs / 1e9:8.2f}"
            f"{speed / 1e9:9.1f}{speed / gemm:9.1%}"
        )
        if not name.startswith("GEMM"):
            time = latency_ratio(sample, samples["ours"])
            macs = contestant.macs / contestants["ours"].macs
            line += f"  {time.ratio:.3f} [{time.low:.3f}, {time.high:.3f}]  {macs:.3f}"
        print(line)


def print_verdicts(contestants: dict[str, Contestant], samples: dict[str, LatencySample]) -> None:
    """Print targets and measurements. No test fails because of a time."""
    gemm = "GEMM, 12 blocks' weights"
    share = rate(contestants["ours"], samples["ours"]) / rate(contestants[gemm], samples[gemm])
    print(f"share of the GEMM rate: {share:.3f} (promised: 0.9)")
    slower = latency_ratio(samples["ours"], samples["Hugging Face"])
    print(
        f"time / Hugging Face's: {slower.ratio:.3f} [{slower.low:.3f}, {slower.high:.3f}] (promised: at most 1)"
    )
    faster = latency_ratio(samples["ours"], samples["ours, bf16-mixed"]).ratio
    print(f"float32 / bf16-mixed: {faster:.2f} (promised with bf16 instructions: 1.7)")
    for name in contestants:
        if name.startswith("DAS"):
            saved = 1 - latency_ratio(samples[name], samples["ours"]).ratio
            promised = 1 - contestants[name].macs / contestants["ours"].macs
            print(f"{name}: {saved / promised:.2f} of what the FLOPs promise (promised: 0.85)")
