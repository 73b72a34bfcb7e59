"""Full-size METER: forward pass against the machine's matrix products and against Hugging Face's modules, training with
LoRA against peft on these modules, training on cached encodings, and ranking of captions.

    pytest -o addopts= tests/benchmarks/test_meter_speed.py                    (-k forward for one of them)

Random weights, 384×384 pixels, 40 tokens. With OMP_NUM_THREADS=1 times are CPU times, which other programs on the
machine disturb less than the wall clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
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
from harness.measure.latency import measure_latency
from harness.process import prepare_process
from harness.training.encoder_cache import cached_encoding
from harness.training.encoding_store import Budgets, EncodingStore
from harness.training.model import TaskModel
from harness.training.optim import build_optimizer
from methods.adapter import SequentialAdapter
from methods.base import Method
from methods.lora import LoRA, LoRAOptions
from tasks.base import Batch, Example
from tasks.data.image_cache import ImageCache
from tasks.data.tokens import tokenize
from tasks.retrieval.batches import score_matrix
from tests.benchmarks.groups import Group, Measured, in_groups
from tests.support.gemm import gemm_cycle, transformer_shapes

SIDE, TEXT = 384, 40
IMAGE_TOKENS = (SIDE // 16) ** 2 + 1
OURS, PRODUCTS, PLAIN = "ours", "products of 17 image blocks", "plain composition"
PEER, ANEW, KEPT, EACH = "plain + peft", "encoders without gradient", "encodings kept", "each pair anew"
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


def timed(runs: dict[str, Callable[[], object]], rounds: int, **kept: dict[str, Any]) -> Measured:
    """Contestants in turn. kept: what is kept beside the times of a contestant, by its name."""
    samples = measure_latency(runs, CPU, min_iterations=rounds, min_seconds=0, warmup=1, clock=CLOCK)
    return {
        name: ([each / 1000 for each in sample.samples_ms], kept.get(name, {}))
        for name, sample in samples.items()
    }


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


def measure_forward() -> Measured:
    backbone = build()
    inputs, plain = inputs_of(backbone, 1), PlainComposition(backbone)
    fold(backbone)
    # The image side's blocks are 95 % of the arithmetic; every one has weights of its own.
    shapes = transformer_shapes(IMAGE_TOKENS, 768, 3072, blocks=17)
    runs = {
        PRODUCTS: gemm_cycle(shapes, CPU),
        OURS: inference(lambda: backbone(inputs)),
        PLAIN: inference(lambda: plain(inputs)),
    }
    with torch.inference_mode():
        torch.testing.assert_close(backbone(inputs), plain(inputs), atol=1e-4, rtol=0)
    share = macs_of(backbone, runs[OURS]) / sum(shape.macs for shape in shapes)
    return timed(runs, 9, ours={"share_of_macs": share, "bar": share / 0.93})


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


def step(backbone: MeterBackbone, model: nn.Module, size: int, encoder: Any = None) -> Callable[[], object]:
    """A training step of `model` on a batch of `size` examples."""
    rates = TrainingSettings(), 1e-4, 1e-4
    optimizer = (
        build_optimizer(model, *rates)
        if isinstance(model, TaskModel)
        else torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, fused=True)
    )
    targets = torch.rand(size, 100)
    batch = Batch((inputs_of(backbone, size),), targets, tuple("abcd"[:size]))

    def run() -> None:
        with set_encoder(backbone, encoder):
            F.binary_cross_entropy_with_logits(model(batch), targets).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def adapted(method: Method[Any]) -> tuple[MeterBackbone, TaskModel]:
    """METER with a method, as a run trains it, for a task with 100 labels."""
    backbone = build()
    method.adapt(backbone, torch.Generator().manual_seed(0))
    backbone.pooled_token_only = method.per_token
    for parameter in backbone.common_parameters():
        parameter.requires_grad_(True)
    task: Any = Classifying()
    return backbone, TaskModel(task, backbone, nn.Linear(backbone.feature_dim, 100)).train()


def measure_kept_encodings() -> Measured:
    backbone, model = adapted(SequentialAdapter())
    with cached_encoding(backbone, EncodingStore(Budgets(1000, 0))) as encoder:
        pass
    return timed({ANEW: step(backbone, model, 4), KEPT: step(backbone, model, 4, encoder)}, 5)


class PlainClassifier(nn.Module):
    """LoRA by peft on the plain composition, with a head; poolers and token types train too."""

    def __init__(self, backbone: MeterBackbone) -> None:
        super().__init__()
        configuration = LoraConfig(r=4, lora_alpha=4, target_modules=r"layers\..*\.(query|value)")
        composed: Any = PlainComposition(backbone)
        self.composition = get_peft_model(composed, configuration)
        for parameter in backbone.common_parameters():
            parameter.requires_grad_(True)
        self.head = nn.Linear(backbone.feature_dim, 100)

    def forward(self, batch: Batch) -> Tensor:
        logits: Tensor = self.head(self.composition(batch.inputs[0]))
        return logits


def measure_training() -> Measured:
    backbone, model = adapted(LoRA(LoRAOptions(r=4)))
    plain = build()
    return timed(
        {PEER: step(plain, PlainClassifier(plain).train(), 2), OURS: step(backbone, model, 2)},
        5,
        ours={"bar": 1 / 1.25},
    )


class Numbers(MeterProcessor):
    """Captions are numbers that stand for random tokens, as no vocabulary is available."""

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [np.random.default_rng(int(text)).integers(3, 50_000, TEXT).tolist() for text in texts]


def measure_ranking(images: int, captions: int) -> Measured:
    """Seconds per pair: all by the evaluation; every tenth caption of each image by encoding both for each pair."""
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
    seconds = {OURS: 0.0, EACH: 0.0}
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
        seconds[EACH] += CLOCK() - started

    def each_pair_anew_of(batch: Batch) -> None:
        # Between two batches of the evaluation, so that both see the machine as busy as it is.
        for group in batch.ids:
            each_pair_anew(int(group))

    each_pair_anew(0)  # warms up
    seconds[EACH] = 0.0
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
        seconds[OURS] = CLOCK() - started - seconds[EACH]
    difference = max(abs(float(matrix[place]) - value) for place, value in sampled.items())
    assert difference < 1e-4
    return {EACH: ([seconds[EACH] / len(sampled)], {}), OURS: ([seconds[OURS] / matrix.size], {})}


GROUPS = [
    Group("METER, forward, batch 1", (PRODUCTS, OURS, PLAIN), PRODUCTS, measure_forward),
    Group("METER, LoRA, training step of 2", (PEER, OURS), PEER, measure_training),
    Group("METER, adapter, training step of 4", (ANEW, KEPT), ANEW, measure_kept_encodings),
    *(
        Group(f"METER, ranking {images} x 40", (EACH, OURS), EACH, partial(measure_ranking, images, 40))
        for images in (2, 8)
    ),
]


@in_groups(GROUPS)
def test_meter(group: Group, contestant: str, benchmark: Any) -> None:
    group.hand_over(contestant, benchmark)
