"""METER's published parameters and MACs, to the unit, on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.meter.model import MeterBackbone
from harness.measure.flops import ComputeCounts, count_forward
from harness.measure.parameters import count_parameters
from methods.adapter import SequentialAdapter
from methods.base import Method
from methods.das import DAS, DASOptions
from methods.lora import LoRA
from methods.parallel import ParallelAdapter
from methods.prompts import DeepPrompt, ShallowPrompt
from tasks.base import Batch
from tests.support.measured_models import classifier

D, TEXT, IMAGE = 768, 40, 577
"""Width, and tokens of each stream at 384 pixels."""
NEVER_READ = 590_592 + 40_448
"""RoBERTa's pooler and CLIP's text side, in the original and not in ours."""


class Classification:
    def __init__(self, images_per_example: int = 1) -> None:
        self.images_per_example = images_per_example

    def forward(self, backbone: Backbone, head: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = head(torch.cat([backbone(part) for part in batch.inputs], dim=-1))
        return logits


def on_meta(module: nn.Module) -> nn.Module:
    return module.to("meta")


def count(
    backbone: MeterBackbone,
    head: nn.Module,
    method: Method[Any] | None = None,
    text: int = TEXT,
    images: int = 1,
) -> ComputeCounts:
    side = backbone.config.image_size
    return count_forward(
        Classification(images), backbone, head, method, image_size=(side, side), text_length=text
    )


def total(backbone: MeterBackbone, head: nn.Module) -> int:
    return count_parameters(backbone, head, []).total + NEVER_READ


def test_vqa_and_retrieval_at_384(full_size_meter: Callable[..., MeterBackbone]) -> None:
    backbone, vqa, rank = (
        full_size_meter(),
        on_meta(classifier(1536, 1536, 3129)),
        on_meta(nn.Linear(1536, 1)),
    )
    assert count(backbone, vqa).macs_total == 93_132_291_072
    assert count(backbone, vqa, text=50).macs_total == 94_685_002_752
    assert count(backbone, rank).macs_total == 93_125_127_168
    assert total(backbone, vqa) == 326_647_865
    both = nn.ModuleList(
        [rank, on_meta(nn.Linear(1536, 2))]
    )  # the published sum has the matching head as well
    assert total(backbone, both) == 319_479_299


def test_snli_ve_at_384(full_size_meter: Callable[..., MeterBackbone]) -> None:
    backbone, head = full_size_meter(), on_meta(classifier(1536, 1536, 3))
    assert count(backbone, head).macs_total == 93_127_489_536
    assert count(backbone, head, text=50).macs_total == 94_680_201_216
    assert total(backbone, head) == 321_843_203


def test_nlvr2_with_two_images_at_288(full_size_meter: Callable[..., MeterBackbone]) -> None:
    backbone, head = full_size_meter(288), on_meta(classifier(3072, 1536, 2))
    backbone.widen_token_types(3)
    assert count(backbone, head, images=2).macs_total == 105_640_261_632
    assert count(backbone, head, text=50, images=2).macs_total == 108_652_787_712
    assert total(backbone, head) == 324_008_194


def block_macs(own: int, other: int) -> int:
    """MACs of a block: self-attention with its four projections, the same for cross-attention, feed-forward."""
    self_attention = 4 * D**2 * own + 2 * D * own**2
    cross_attention = 2 * D**2 * own + 2 * D**2 * other + 2 * D * own * other
    return self_attention + cross_attention + 8 * D**2 * own


def test_components_in_closed_form(full_size_meter: Callable[..., MeterBackbone]) -> None:
    backbone, head = full_size_meter(), on_meta(classifier(1536, 1536, 3129))
    counts = count(backbone, head)

    def encoder(layers: int, tokens: int) -> int:
        return layers * (12 * D**2 * tokens + 2 * D * tokens**2)

    projections = {stream: D**2 * tokens for stream, tokens in (("text", TEXT), ("image", IMAGE))}
    assert counts.macs == {
        "text encoder": encoder(12, TEXT) + projections["text"],
        "image encoder": encoder(11, IMAGE) + projections["image"] + 576 * 3 * 16**2 * D,
        "fusion": 6 * (block_macs(TEXT, IMAGE) + block_macs(IMAGE, TEXT)),
        "pooler": 2 * D**2,
        "head": 1536 * 1536 + 1536 * 3129,
        "method": 0,
    }
    assert counts.layer_norm_elements == {
        "text encoder": 25 * TEXT * D,
        "image encoder": 24 * IMAGE * D,
        "fusion": 6 * 3 * (TEXT + IMAGE) * D,
        "pooler": 0,
        "head": 1536,
        "method": 0,
    }


def adapted(backbone: MeterBackbone, method: Method[Any]) -> MeterBackbone:
    method.adapt(backbone, torch.Generator())
    backbone.to("meta")
    return backbone


def changes(
    make: Callable[..., MeterBackbone], method: Method[Any], finalize: bool = True
) -> tuple[int, int, float]:
    """Change of MACs, change of MACs with LayerNorm counted as 5 per element, and the latter in percent."""
    head = on_meta(classifier(1536, 1536, 3129))
    before = count(make(), head)
    backbone = adapted(make(), method)
    if finalize:
        method.finalize(backbone)
    after = count(backbone, head, method)
    with_norm = after.with_layer_norm_total - before.with_layer_norm_total
    return after.macs_total - before.macs_total, with_norm, 100 * with_norm / before.with_layer_norm_total


def test_das_saves_what_the_papers_abstract_states(full_size_meter: Callable[..., MeterBackbone]) -> None:
    method = DAS(DASOptions(blocks=("text.2", "text.4", "image.1", "image.3")))
    pure, with_norm, percent = changes(full_size_meter, method)
    assert round(percent, 3) == -11.968
    assert round(with_norm / 1e9, 3) == -11.158
    assert round(100 * with_norm / percent / 1e9, 3) == 93.232
    assert round(pure / 1e9, 3) == -11.177
    assert round(100 * pure / 93_132_291_072, 2) == -12.00


@pytest.mark.parametrize(("text", "image"), [(0, 1), (1, 0), (4, 0), (0, 4), (3, 1)])
def test_a_skipped_block_saves_what_its_stream_costs(
    full_size_meter: Callable[..., MeterBackbone], text: int, image: int
) -> None:
    blocks = [f"text.{i}" for i in range(text)] + [f"image.{i}" for i in range(image)]
    pure, _, _ = changes(full_size_meter, DAS(DASOptions(blocks=tuple(blocks))))
    adapters = 3 * 2 * D * 96  # of a kept block, for each of its tokens; a shortcut of 288 costs the same
    assert adapters == 2 * D * 288
    saved = text * block_macs(TEXT, IMAGE) + image * block_macs(IMAGE, TEXT)
    assert pure == 6 * adapters * (TEXT + IMAGE) - saved
    published = 1.6376 - 1.0489 * text - 5.3586 * image
    assert pure / 1e9 == pytest.approx(published, abs=4e-4)


@pytest.mark.parametrize(
    ("method", "parameters", "giga", "digits"),
    [
        (LoRA(), 294_912, 0.0, 3),
        (SequentialAdapter(), 5_339_520, 1.638, 3),
        (ParallelAdapter(), 3_596_544, 1.120, 3),
        (ShallowPrompt(), 307_200, 28.70, 2),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_compared_methods_cost_what_is_published(
    full_size_meter: Callable[..., MeterBackbone],
    method: Method[Any],
    parameters: int,
    giga: float,
    digits: int,
) -> None:
    backbone = adapted(full_size_meter(), method)
    assert sum(p.numel() for p in method.method_parameters(backbone)) == parameters
    assert round(changes(full_size_meter, method)[1] / 1e9, digits) == giga


def test_unmerged_lora_costs_its_updates(full_size_meter: Callable[..., MeterBackbone]) -> None:
    pure, with_norm, _ = changes(full_size_meter, LoRA(), finalize=False)
    # Self-attention's query and value and cross-attention's query read own tokens, its value the other's.
    assert pure == with_norm == 4 * 2 * D * 6 * 4 * (TEXT + IMAGE)
    assert round(pure / 1e9, 3) == 0.091


def test_deep_prompts_cost_only_in_their_own_block(
    full_size_meter: Callable[..., MeterBackbone],
) -> None:
    method = DeepPrompt()
    backbone = adapted(full_size_meter(), method)
    assert sum(p.numel() for p in method.method_parameters(backbone)) == 1_843_200
    pure, _, _ = changes(full_size_meter, DeepPrompt())
    expected = sum(
        block_macs(own + 200, other) - block_macs(own, other) for own, other in ((TEXT, IMAGE), (IMAGE, TEXT))
    )
    assert pure == 6 * expected


@pytest.mark.parametrize("skipped", [1, 2, 4])
def test_parameters_of_das(full_size_meter: Callable[..., MeterBackbone], skipped: int) -> None:
    method = DAS(DASOptions(blocks=tuple(f"image.{index}" for index in range(skipped))))
    backbone = adapted(full_size_meter(), method)
    adapters = 444_960 * skipped + 449_568 * (12 - skipped)
    assert sum(p.numel() for p in method.method_parameters(backbone)) == adapters + D  # and the token
    assert sum(p.numel() for p in backbone.blocks.parameters() if p.requires_grad) == adapters
    if skipped == 4:
        assert adapters == 5_376_384
