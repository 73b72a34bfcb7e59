"""Full-size METER: forward pass against the machine's GEMM rate and against Hugging Face's modules, training on
cached encodings, skipped blocks, and ranking of captions.

    pytest -o addopts= tests/benchmarks/test_meter_speed.py -s                    (-k forward for one of them)

Everything of a table is measured in one interleaved run, on random weights, 384×384 pixels, 40 tokens. With
OMP_NUM_THREADS=1 times are CPU times, which other programs on the machine disturb less than the wall clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.bridgetower.modeling_bridgetower import BridgeTowerBertCrossLayer

from harness.backbones.base import BackboneOptions
from harness.backbones.folding import fold
from harness.backbones.inputs import Inputs
from harness.backbones.meter.loading import load_meter
from harness.backbones.meter.model import MeterBackbone
from harness.backbones.meter.processor import MeterProcessor
from harness.config import TrainingSettings
from harness.measure.flops import count_macs
from harness.measure.latency import LatencySample, latency_ratio, measure_latency
from harness.process import prepare_process
from harness.training.encoder_cache import cached_encoding
from harness.training.encoding_store import Budgets, EncodingStore
from harness.training.model import TaskModel
from harness.training.optim import build_optimizer
from methods.adapter import SequentialAdapter
from methods.das import DAS, DASOptions
from tasks.base import Batch, Example
from tasks.data.image_cache import ImageCache
from tasks.data.tokens import tokenize
from tasks.retrieval.batches import score_matrix
from tests.support.gemm import gemm_cycle, transformer_shapes

SIDE, TEXT = 384, 40
IMAGE_TOKENS = (SIDE // 16) ** 2 + 1
SKIPPED = ("text.2", "text.4", "image.1", "image.3")
CPU = torch.device("cpu")
CLOCK = time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def build() -> MeterBackbone:
    prepare_process()  # as every run does
    torch.manual_seed(0)
    return load_meter(BackboneOptions(weights="random", image_size=SIDE)).requires_grad_(False)


def inputs_of(backbone: MeterBackbone, batch: int, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    inputs = backbone.example_inputs(batch, TEXT, (SIDE, SIDE), generator)
    return replace(inputs, image_keys=tuple(bytes([seed, row]) for row in range(batch)))


def inference(function: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return function()

    return run


def macs_of(backbone: MeterBackbone, run: Callable[[], object]) -> int:
    return count_macs(backbone, nn.Identity(), run, (), text_length=TEXT, image_size=(SIDE, SIDE)).macs_total


def print_times(title: str, samples: dict[str, LatencySample], macs: dict[str, int], reference: str) -> None:
    first = next(iter(samples.values()))
    print(
        f"\n{title}, {SIDE}x{SIDE}, text {TEXT}, {first.threads} thread(s), {CLOCK.__name__}, n = {first.n}"
    )
    print(f"{'':34}{'p50 ms':>9}{'p90 ms':>9}{'GMACs':>8}{'GMACs/s':>9}  time / {reference} [95 %]")
    for name, sample in samples.items():
        ratio = latency_ratio(sample, samples[reference])
        work = f"{macs[name] / 1e9:8.2f}{macs[name] / sample.p50 / 1e6:9.1f}" if name in macs else 17 * " "
        print(
            f"{name:34}{sample.p50:9.1f}{sample.p90:9.1f}{work}"
            f"  {ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
        )


class PlainComposition(nn.Module):
    """Hugging Face's modules run one after the other: RoBERTa, CLIP, fusion layers with eager attention."""

    def __init__(self, backbone: MeterBackbone) -> None:
        super().__init__()
        self.model = backbone.model
        with torch.device("meta"):
            layers = [BridgeTowerBertCrossLayer(backbone.config.fusion()) for _ in backbone.blocks]
        self.layers = nn.ModuleList(layers)
        for layer, block in zip(self.layers, backbone.blocks, strict=True):
            layer.load_state_dict(block.state_dict(), assign=True)
        self.eval()

    def forward(self, inputs: Inputs) -> Tensor:
        model: Any = self.model
        types = model.token_type_embeddings.weight
        mask = torch.ones_like(inputs.input_ids)
        text = model.text_encoder(inputs.input_ids, attention_mask=mask).last_hidden_state
        image = model.image_encoder(inputs.pixels).last_hidden_state
        image = model.image_encoder.post_layernorm(image)
        states = model.text_projection(text) + types[0], model.image_projection(image) + types[1]
        text_mask = torch.zeros(len(inputs), 1, 1, states[0].shape[1])
        image_mask = torch.zeros(len(inputs), 1, 1, states[1].shape[1])
        depths = len(self.layers) // 2
        for text_layer, image_layer in zip(self.layers[:depths], self.layers[depths:], strict=True):
            states = (
                text_layer(states[0], states[1], text_mask, encoder_attention_mask=image_mask)[0],
                image_layer(states[1], states[0], image_mask, encoder_attention_mask=text_mask)[0],
            )
        return torch.cat([model.text_pooler(states[0]), model.image_pooler(states[1])], dim=-1)


@pytest.mark.timeout(1800)
def test_forward(capsys: pytest.CaptureFixture[str]) -> None:
    backbone = build()
    inputs, plain = inputs_of(backbone, 1), PlainComposition(backbone)
    fold(backbone)
    # The image side's blocks are 95 % of the arithmetic; every one has weights of its own.
    shapes = transformer_shapes(IMAGE_TOKENS, 768, 3072, blocks=17)
    gemm, ours = "GEMM, 17 image blocks' weights", "ours"
    macs = {
        gemm: sum(shape.macs for shape in shapes),
        ours: macs_of(backbone, inference(lambda: backbone(inputs))),
    }
    macs["plain composition"] = macs[ours]
    with torch.inference_mode():
        torch.testing.assert_close(backbone(inputs), plain(inputs), atol=1e-4, rtol=0)
    runs = {
        gemm: gemm_cycle(shapes, CPU),
        ours: inference(lambda: backbone(inputs)),
        "plain composition": inference(lambda: plain(inputs)),
    }
    samples = measure_latency(runs, CPU, min_iterations=9, min_seconds=0, warmup=1, clock=CLOCK)
    share = median(
        (macs[ours] / own) / (macs[gemm] / its)
        for own, its in zip(samples[ours].samples_ms, samples[gemm].samples_ms, strict=True)
    )
    with capsys.disabled():
        print_times("METER, batch 1", samples, macs, ours)
        print(f"share of the GEMM rate, median over rounds: {share:.1%}")


@contextmanager
def set_encoder(backbone: MeterBackbone, encoder: Any) -> Any:
    backbone.encoder = encoder
    try:
        yield
    finally:
        backbone.encoder = None


class Classifying:
    """The training loss of a task with 100 labels."""

    def forward(self, backbone: MeterBackbone, head: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = head(backbone(batch.inputs[0]))
        return logits


@pytest.mark.timeout(1800)
def test_training_on_kept_encodings(capsys: pytest.CaptureFixture[str]) -> None:
    backbone, size = build(), 4
    SequentialAdapter().adapt(backbone, torch.Generator().manual_seed(0))
    backbone.pooled_token_only = SequentialAdapter.per_token  # as in a run
    for parameter in backbone.common_parameters():
        parameter.requires_grad_(True)
    task: Any = Classifying()
    model = TaskModel(task, backbone, nn.Linear(backbone.feature_dim, 100)).train()
    optimizer = build_optimizer(model, TrainingSettings(), 1e-4, 1e-4)
    batch = Batch((inputs_of(backbone, size),), torch.rand(size, 100), tuple("abcd"))

    def step(encoder: Any) -> Callable[[], object]:
        def run() -> None:
            with set_encoder(backbone, encoder):
                assert batch.targets is not None
                F.binary_cross_entropy_with_logits(model(batch), batch.targets).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return run

    with cached_encoding(backbone, EncodingStore(Budgets(1000, 0))) as encoder:
        pass
    kept, anew = "encodings kept", "encoders without gradient"
    samples = measure_latency(
        {kept: step(encoder), anew: step(None)}, CPU, min_iterations=5, min_seconds=0, warmup=1, clock=CLOCK
    )
    speedup = latency_ratio(samples[anew], samples[kept])
    with capsys.disabled():
        print_times(f"METER, adapter, training step of {size}", samples, {}, kept)
        print(
            f"examples/s with encodings kept: × {speedup.ratio:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"
        )


@pytest.mark.timeout(1800)
def test_fusion_with_blocks_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    plain, skipping, method = build(), build(), DAS(DASOptions(blocks=SKIPPED))
    method.adapt(skipping, torch.Generator().manual_seed(0))
    method.finalize(skipping)
    fold(plain)
    inputs = inputs_of(plain, 1)
    with torch.inference_mode():
        streams = plain.encode(inputs)
    full, das = "all blocks", "DAS, 2 + 2 of 12 skipped"
    runs = {
        full: inference(lambda: plain.fuse(streams)),
        das: inference(lambda: skipping.fuse(streams)),
    }
    macs = {full: macs_of(plain, runs[full]), das: macs_of(skipping, runs[das])}
    samples = measure_latency(runs, CPU, min_iterations=15, min_seconds=0, warmup=2, clock=CLOCK)
    promised = 1 - macs[das] / macs[full]
    ratio = latency_ratio(samples[das], samples[full])
    with capsys.disabled():
        print_times("METER, fusion stage, batch 1", samples, macs, full)
        print(
            f"falls by {1 - ratio.ratio:.1%} [{1 - ratio.high:.1%}, {1 - ratio.low:.1%}], the MACs by "
            f"{promised:.1%}: {(1 - ratio.ratio) / promised:.2f} of the promise"
        )


class Numbers(MeterProcessor):
    """Captions are numbers that stand for random tokens, as no vocabulary is available."""

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [np.random.default_rng(int(text)).integers(3, 50_000, TEXT).tolist() for text in texts]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("images", "captions"), [(2, 40), (8, 40)])
def test_ranking_captions(images: int, captions: int, capsys: pytest.CaptureFixture[str]) -> None:
    """All pairs by the evaluation; every tenth caption of each image by encoding both for each pair."""
    backbone = build()
    fold(backbone)
    backbone.pooled_token_only = True  # as in a run
    head = nn.Linear(backbone.feature_dim, 1)
    pictures = ImageCache(Numbers(None, SIDE, 16, TEXT))
    generator = torch.Generator().manual_seed(0)
    for image in range(images):
        pictures.add(f"{image}", torch.randint(256, (3, SIDE, SIDE), generator=generator, dtype=torch.uint8))
    examples = [
        Example(f"{k}", f"{k}", (Path(f"{k % images}"),), None, f"{k % images}") for k in range(captions)
    ]
    seconds = {"evaluation": 0.0, "each pair anew": 0.0}
    sampled: dict[tuple[int, int], float] = {}

    def each_pair_anew(image: int) -> None:
        started = CLOCK()
        picture = pictures.get(f"{image}")
        assert isinstance(picture, Tensor)
        pixels = pictures.processor.normalize(picture[None])
        for caption in range(0, captions, 10):
            ids = torch.tensor(pictures.processor.tokenize([f"{caption}"]))
            with torch.inference_mode():
                sampled[image, caption] = float(head(backbone(Inputs(ids, None, pixels))))
        seconds["each pair anew"] += CLOCK() - started

    def each_pair_anew_of(batch: Batch) -> None:
        # Between two batches of the evaluation, so that both see the machine as busy as it is.
        for group in batch.ids:
            each_pair_anew(int(group))

    each_pair_anew(0)  # warms up
    seconds["each pair anew"] = 0.0
    with cached_encoding(backbone, EncodingStore(Budgets(1000, 0)), evaluation=True):
        started = CLOCK()
        encoder, backbone.encoder = backbone.encoder, None

        def evaluated(batch: Batch) -> Tensor:
            with set_encoder(backbone, encoder), torch.inference_mode():
                scores: Tensor = head(backbone.forward_pairs(batch.inputs[0]))
            each_pair_anew_of(batch)
            return scores.view(len(batch), -1)

        tokens = tokenize(pictures.processor, [example.text for example in examples])
        matrix, _, _ = score_matrix(evaluated, examples, tokens, pictures, pairs_per_batch=captions)
        seconds["evaluation"] = CLOCK() - started - seconds["each pair anew"]
    rates = {
        "evaluation": matrix.size / seconds["evaluation"],
        "each pair anew": len(sampled) / seconds["each pair anew"],
    }
    difference = max(abs(float(matrix[place]) - value) for place, value in sampled.items())
    assert difference < 1e-4
    with capsys.disabled():
        print(f"\nMETER, {images} images × {captions} captions, {SIDE}x{SIDE}, text {TEXT}")
        for name, rate in rates.items():
            print(f"{name:20}{rate:8.3f} pairs/s")
        print(f"× {rates['evaluation'] / rates['each pair anew']:.2f}, scores differ by {difference:.1e}")
