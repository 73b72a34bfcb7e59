"""Full-size ViLT, folded, against this machine's own matrix products, against Hugging Face, and with blocks skipped.

    pytest -o addopts= tests/benchmarks/test_vilt_speed.py            (-k batch_1 for batch 1 only)

Random weights, 384×576 pixels, 40 tokens. The reference is the physical limit: the matrix products of twelve blocks,
each with weights of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

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
from harness.measure.latency import measure_latency
from harness.process import prepare_process
from methods.das import DAS, DASOptions
from tests.benchmarks.groups import Group, Measured, in_groups
from tests.support.gemm import gemm_cycle, transformer_shapes

IMAGE, TEXT = (384, 576), 40
TOKENS = IMAGE[0] * IMAGE[1] // 32**2 + 1 + TEXT
ROUNDS = 15
PRODUCTS = "products of 12 blocks"


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


def measure(batch: int, share: float) -> Measured:
    """All contestants at a batch size. share: of the rate of matrix products, which the forward pass shall reach."""
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
        PRODUCTS: Contestant(gemm_cycle(distinct, device), sum(s.macs for s in distinct)),
        "products of one block": Contestant(gemm_cycle(one_block, device), sum(s.macs for s in one_block)),
        "ours": Contestant(inference(ours, inputs), own_macs),
        "Hugging Face": Contestant(
            inference(theirs, input_ids=inputs.input_ids, pixel_values=inputs.pixels), own_macs
        ),
        "ours, bf16-mixed": Contestant(in_mixed_precision(inference(ours, inputs)), own_macs),
        **{
            f"DAS, {skipped} of 12": Contestant(inference(model, inputs), macs_of(model, inputs))
            for skipped, model in das.items()
        },
    }
    with torch.inference_mode():
        reference = theirs(input_ids=inputs.input_ids, pixel_values=inputs.pixels).pooler_output
        torch.testing.assert_close(ours(inputs), reference, atol=1e-4, rtol=0)
    samples = measure_latency(
        {name: contestant.run for name, contestant in contestants.items()},
        device,
        min_iterations=ROUNDS,
        min_seconds=0,
        warmup=2,
    )
    found: Measured = {}
    for name, contestant in contestants.items():
        work = contestant.macs / contestants[PRODUCTS].macs
        kept = {
            "macs": contestant.macs,
            "share_of_macs": work,
            "bar": work / share if name == "ours" else None,
        }
        found[name] = ([each / 1000 for each in samples[name].samples_ms], kept)
    return found


NAMES = (
    PRODUCTS,
    "products of one block",
    "ours",
    "Hugging Face",
    "ours, bf16-mixed",
    "DAS, 2 of 12",
    "DAS, 4 of 12",
)
GROUPS = [
    Group(f"ViLT-B/32, 384x576, batch {batch}", NAMES, PRODUCTS, partial(measure, batch, share))
    for batch, share in ((1, 0.93), (4, 0.95))
]


@in_groups(GROUPS)
def test_vilt_against_its_matrix_products(group: Group, contestant: str, benchmark: Any) -> None:
    group.hand_over(contestant, benchmark)
