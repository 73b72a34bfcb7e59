from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.backbones.base import Backbone
from harness.backbones.vilt.block import ViltBlock
from harness.backbones.vilt.model import ViltBackbone
from harness.measure.flops import ComputeCounts, count_forward, count_macs
from methods.base import Inserted, Method
from tasks.base import Batch
from tests.support.measured_models import add_adapters_of_das, classifier

WIDTH = 768


class Classification:
    """One pass per image, features concatenated; for VQA, NLVR2 and image-text pairs."""

    def __init__(self, images_per_example: int = 1) -> None:
        self.images_per_example = images_per_example

    def forward(self, backbone: Backbone, head: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = head(torch.cat([backbone(part) for part in batch.inputs], dim=-1))
        return logits


class Nothing(Method[object]):
    name = "nothing"
    summary = source = ""

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        pass


def count(backbone: Backbone, head: nn.Module, size: tuple[int, int], images: int = 1) -> ComputeCounts:
    return count_forward(Classification(images), backbone, head, Nothing(), image_size=size, text_length=40)


def tokens(size: tuple[int, int]) -> int:
    return size[0] * size[1] // 32**2 + 1 + 40


def block_macs(t: int) -> int:
    return 12 * WIDTH**2 * t + 2 * WIDTH * t**2


@pytest.mark.parametrize(
    ("size", "vqa", "nlvr2", "pair"),
    [
        ((384, 640), 25_894_854_144, 51_780_099_072, 25_888_869_120),
        ((384, 608), 24_725_675_520, 49_441_741_824, 24_719_690_496),
        ((384, 576), 23_561_805_312, 47_114_001_408, 23_555_820_288),
        ((384, 384), 16_690_060_800, 33_370_512_384, 16_684_075_776),
    ],
)
def test_published_macs_of_vilt(
    full_size: ViltBackbone, size: tuple[int, int], vqa: int, nlvr2: int, pair: int
) -> None:
    with torch.device("meta"):
        of_vqa, of_pair = classifier(768, 1536, 3129), nn.Linear(768, 1)
        of_nlvr2 = classifier(1536, 1536, 2)
    assert count(full_size, of_vqa, size).macs_total == vqa
    assert count(full_size, of_pair, size).macs_total == pair
    full_size.widen_token_types(3)
    assert count(full_size, of_nlvr2, size, images=2).macs_total == nlvr2


def test_components_of_vilt_in_closed_form(full_size: ViltBackbone) -> None:
    size = (384, 608)
    with torch.device("meta"):
        head = classifier(768, 1536, 3129)
    counts = count(full_size, head, size)
    assert counts.macs == {
        "embeddings": (384 * 608 // 32**2) * 3 * 32**2 * WIDTH,
        "fusion": 12 * block_macs(tokens(size)),
        "pooler": WIDTH**2,
        "head": 768 * 1536 + 1536 * 3129,
        "method": 0,
    }
    assert counts.layer_norm_elements == {
        "embeddings": 40 * WIDTH,
        "fusion": 12 * 2 * tokens(size) * WIDTH + WIDTH,  # the final norm sees the first token only
        "pooler": 0,
        "head": 1536,
        "method": 0,
    }
    assert counts.flops_total == 2 * counts.macs_total
    elements = sum(counts.layer_norm_elements.values())
    assert counts.with_layer_norm_total == counts.macs_total + 5 * elements


@pytest.mark.parametrize(
    ("size", "skipped", "published"),
    [((384, 640), 1, -1.1157), ((384, 640), 2, -3.2259), ((384, 640), 4, -7.4462), ((384, 384), 4, None)],
)
def test_skipped_block_costs_only_its_shortcut(
    full_size: ViltBackbone, size: tuple[int, int], skipped: int, published: float | None
) -> None:
    with torch.device("meta"):
        head = nn.Linear(WIDTH, 1)
        before = count(full_size, head, size)
        add_adapters_of_das(full_size, skipped)
    after = count(full_size, head, size)
    t = tokens(size)
    delta = after.macs_total - before.macs_total
    assert delta == 12 * 294_912 * t - skipped * block_macs(t)
    assert published in (None, round(delta / 1e9, 4))
    assert after.macs["method"] == 12 * 294_912 * t
    assert after.macs["fusion"] == (12 - skipped) * block_macs(t)
    # a shortcut normalises once, a kept block's two adapters twice
    assert after.layer_norm_elements["method"] == (2 * (12 - skipped) + skipped) * t * WIDTH


class Stated:
    size, length, patches = (32, 48), 6, 6


def run_tiny(backbone: ViltBackbone, head: nn.Module, device: str = "cpu") -> ComputeCounts:
    return count_forward(
        Classification(),
        backbone.to(device),
        head.to(device),
        None,
        image_size=Stated.size,
        text_length=Stated.length,
    )


def test_count_on_the_meta_device_equals_count_on_the_cpu(tiny: ViltBackbone) -> None:
    head = nn.Linear(32, 5)
    real = run_tiny(tiny, head)
    t = Stated.length + 1 + Stated.patches
    assert real.macs["fusion"] == 3 * ((4 * 32**2 + 2 * 32 * 64) * t + 2 * 32 * t**2)
    assert real.macs["embeddings"] == Stated.patches * 3 * 16**2 * 32
    assert run_tiny(tiny, head, "meta") == real


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradient_mode_and_padding_do_not_change_the_count(tiny: ViltBackbone, context: type) -> None:
    head = nn.Linear(32, 5)
    unpadded = run_tiny(tiny, head)
    inputs = tiny.example_inputs(1, Stated.length, Stated.size, torch.Generator().manual_seed(0))
    padded = replace(
        inputs,
        text_mask=torch.arange(Stated.length)[None] < 4,
        image_sizes=torch.tensor([Stated.size]),
    )

    def run() -> None:
        with context():
            head(tiny(padded))

    counts = count_macs(tiny, head, run, [], text_length=Stated.length, image_size=Stated.size)
    assert counts == unpadded


def test_macs_are_proportional_to_the_batch(tiny: ViltBackbone) -> None:
    head = nn.Linear(32, 5)
    one, four = (
        count_forward(Classification(), tiny, head, None, image_size=(32, 32), text_length=5, batch_size=b)
        for b in (1, 4)
    )
    assert four.macs == {name: 4 * macs for name, macs in one.macs.items()}
    assert four.batch_size == 4


class Attending(Inserted):
    """A module without weights, whose attention still counts for the method."""

    def forward(self, hidden: Tensor) -> Tensor:
        heads = hidden[:, None]
        return functional.scaled_dot_product_attention(heads, heads, heads)[:, 0]


def test_attention_inside_an_inserted_module_counts_for_the_method(tiny: ViltBackbone) -> None:
    module = Attending()
    block = tiny.blocks[1]
    assert isinstance(block, ViltBlock)
    block.sequential["mlp"] = module
    head = nn.Linear(32, 5)
    counts = count_forward(
        Classification(), tiny, head, Nothing(), image_size=Stated.size, text_length=Stated.length
    )
    assert counts.macs["method"] == 2 * 32 * (Stated.length + 1 + Stated.patches) ** 2


def test_products_outside_every_component_are_shown_as_other(tiny: ViltBackbone) -> None:
    stray = torch.randn(32, 32)
    inputs = tiny.example_inputs(1, 5, (32, 32), torch.Generator())
    counts = count_macs(
        tiny, nn.Identity(), lambda: tiny(inputs) @ stray, [], text_length=5, image_size=(32, 32)
    )
    assert counts.macs["other"] == 32 * 32


def test_backward_pass_is_counted_beside_the_forward_pass(tiny: ViltBackbone) -> None:
    tiny.requires_grad_(False)
    head = nn.Linear(32, 5)
    inputs = tiny.example_inputs(2, 5, (32, 32), torch.Generator())

    def run() -> None:
        head(tiny(inputs)).sum().backward()

    counts = count_macs(tiny, head, run, [], text_length=5, image_size=(32, 32), batch_size=2)
    assert counts.macs["backward"] == counts.macs["head"] == 2 * 32 * 5  # the head's weight alone


def test_counting_does_not_change_the_model(tiny: ViltBackbone) -> None:
    head = nn.Sequential(nn.Linear(32, 5), nn.Dropout())
    tiny.train()
    tiny.blocks[0].eval()
    state = torch.random.get_rng_state()
    run_tiny(tiny, head)
    assert tiny.training
    assert not tiny.blocks[0].training
    assert head.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*tiny.modules(), *head.modules()])
    assert torch.equal(state, torch.random.get_rng_state())
