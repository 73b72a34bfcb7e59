"""ToMe on ViLT's joint stream and in METER's image layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harness.backbones.base import Backbone
from harness.backbones.block import BlockInput, Tokens
from harness.backbones.masks import additive_mask
from harness.backbones.meter.model import MeterBackbone
from harness.errors import UserError
from harness.registry import build_method
from harness.specs import parse_specs
from methods.das import DAS, DASOptions
from methods.lora import LoRA
from methods.tome import MergeImage, MergeJoint, Tome, TomeOptions
from tests.support.small_vilt import mini
from tests.support.token_counts import (
    alone,
    count,
    full_size_vilt,
    lengths_read,
    matching_macs,
    meter_layer_macs,
    padded_inputs,
    tokens_read,
    vilt_block_macs,
)

Maker = Callable[..., MeterBackbone]


def merging(backbone: Backbone, **options: object) -> Backbone:
    Tome(TomeOptions(**options)).adapt(backbone, torch.Generator())  # type: ignore[arg-type]
    return backbone.eval()


def example(backbone: Backbone, side: int = 64) -> Tensor:
    inputs = backbone.example_inputs(2, 5, (side, side), torch.Generator().manual_seed(1))
    features: Tensor = backbone(inputs)
    return features


@pytest.mark.parametrize(
    ("options", "images"),
    [
        ({"r": 1}, [17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6]),
        ({"r": 8}, [17, 9, 5, 3, 2, 2, 2, 2, 2, 2, 2, 2]),
        ({"r": (3, 0, 2)}, [17, 14, 14, *[12] * 9]),
        ({"r": 1, "inflection": -1.0}, [17, 15, 14, 13, 12, 11, 10, *[10] * 5]),
        ({}, [17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6]),
    ],
)
@torch.no_grad()
def test_vilt_merges_image_tokens_only(options: dict[str, object], images: list[int]) -> None:
    backbone = merging(mini(), **options)
    lengths = lengths_read(backbone, lambda: example(backbone))
    assert lengths == [(5, image) for image in images]


@torch.no_grad()
def test_every_original_token_is_counted_once() -> None:
    backbone = merging(mini(), r=3)
    seen = tokens_read(backbone, lambda: example(backbone))
    assert seen[0].sizes is None
    for tokens in seen[1:]:
        assert tokens.sizes is not None
        assert tokens.sizes.sum(dim=1).tolist() == [5 + 17] * 2
        assert (tokens.sizes[:, :6] == 1).all()  # words and the image's class token


@torch.no_grad()
def test_merged_states_are_means_of_the_states_after_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, keys = torch.randn(1, 7, 3, generator=generator), torch.randn(1, 7, 2, generator=generator)
    sizes = torch.tensor([[1.0, 1, 1, 1, 4, 1, 1]])
    # Two words, a class token at 0°, then patches at 5°, 60°, 90° and 85°: the last joins the one before it.
    degrees = torch.tensor([0.0, 5, 60, 90, 85]).deg2rad()
    keys[0, 2:] = torch.stack([degrees.cos(), degrees.sin()], dim=-1)
    merged = MergeImage(1)(Tokens(hidden, None, 2, sizes), keys, None)
    assert merged.text_length == 2
    torch.testing.assert_close(merged.hidden[:, :5], hidden[:, [0, 1, 2, 4, 3]])
    torch.testing.assert_close(merged.hidden[0, 5], hidden[0, 5:].mean(dim=0))
    assert merged.sizes is not None
    assert merged.sizes.tolist() == [[1, 1, 1, 4, 1, 2]]


@torch.no_grad()
def test_model_that_merges_nothing_equals_the_plain_one(make_meter: Maker) -> None:
    torch.testing.assert_close(example(merging(mini(), r=0)), example(mini().eval()), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        example(merging(make_meter(), r=0), 32), example(make_meter().eval(), 32), atol=1e-6, rtol=0
    )


@torch.no_grad()
def test_merging_equal_patches_does_not_change_the_output() -> None:
    """With proportional attention a token that stands for n equal ones has the same effect as they have."""
    hidden = torch.randn(1, 9, 128, generator=torch.Generator().manual_seed(0))
    hidden[:, 4:] = hidden[:, 3:4]  # three words, then patches that are all alike
    results = {}
    for proportional in (True, False):
        backbone, tokens = merging(mini(), r=2, proportional=proportional), Tokens(hidden, None, 3)
        for block in backbone.blocks:
            tokens = block(BlockInput(tokens)).tokens
        results[proportional] = tokens.hidden[:, :3]
    plain = Tokens(hidden, None, 3)
    for block in mini().eval().blocks:
        plain = block(BlockInput(plain)).tokens
    torch.testing.assert_close(results[True], plain.hidden[:, :3], atol=1e-5, rtol=1e-5)
    assert (results[False] - plain.hidden[:, :3]).abs().max() > 1e-3


@pytest.mark.parametrize("r", [1, 3, (5, 0, 2)])
@torch.no_grad()
def test_padding_changes_nothing(r: int | tuple[int, ...]) -> None:
    backbone = merging(mini(), r=r)
    sizes = torch.tensor([[64, 64], [48, 64], [64, 32]])
    inputs = padded_inputs(backbone, 64, sizes)
    together = backbone(inputs)
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], backbone(alone(inputs, row)), atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_changes_nothing_in_meter(make_meter: Maker) -> None:
    backbone = merging(make_meter(), r=1)
    inputs = padded_inputs(backbone, 32)
    together = backbone(inputs)
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], backbone(alone(inputs, row)), atol=1e-5, rtol=0)


@torch.no_grad()
def test_meters_image_layers_merge(make_meter: Maker) -> None:
    backbone = merging(make_meter(), r=1)
    inputs = backbone.example_inputs(1, 6, (32, 32), torch.Generator())
    after = {}
    lengths = lengths_read(backbone, lambda: after.update(backbone.run_blocks(backbone.encode(inputs))))
    assert lengths == [(6, 5), (6, 4)]
    assert {name: len(tokens) for name, tokens in after.items()} == {"text": 6, "image": 3}
    assert after["text"].sizes is None
    assert after["image"].sizes is not None
    assert after["image"].sizes[0, 0] == 1  # the class token, which is pooled
    assert after["image"].sizes.sum() == 5


@torch.no_grad()
def test_meters_text_layers_attend_in_proportion_to_sizes(make_meter: Maker) -> None:
    image = torch.randn(1, 3, 64)
    text = Tokens(torch.randn(1, 4, 64))
    merged = Tokens(image, sizes=torch.tensor([[1.0, 2.0, 1.0]]))
    spread = Tokens(image[:, [0, 1, 1, 2]])
    for proportional in (True, False):
        block = merging(make_meter(), proportional=proportional).blocks[1]
        short, long = (block(BlockInput(text, other)).tokens.hidden for other in (merged, spread))
        assert torch.allclose(short, long, atol=1e-6) == proportional


@torch.no_grad()
def test_unprotected_class_token_can_be_merged() -> None:
    backbone = merging(mini(), r=8, class_token=False)
    lengths = lengths_read(backbone, lambda: example(backbone))
    assert [image for _, image in lengths[:6]] == [17, 9, 5, 3, 2, 1]
    keys = torch.tensor([[[1.0, 0], [1, 0], [0, 1]]])  # class token and first patch are equal
    hidden = torch.tensor([[[9.0], [1], [3], [5]]])
    keys = torch.cat([keys.new_ones(1, 1, 2), keys], dim=1)
    merged = MergeImage(1, protect_class_token=False)(Tokens(hidden, None, 1), keys, None)
    assert merged.hidden.flatten().tolist() == [9, 5, 2]


@torch.no_grad()
def test_the_joint_baseline_merges_masks_as_it_merges_states() -> None:
    # Positions 0 (protected), 1 a word, 2 padding as similar to it as can be, 3 a patch.
    keys = torch.tensor([[[1.0, 0], [0, 1], [0, 1], [1, 1], [1, -1]]])
    hidden = torch.tensor([[[1.0], [2], [4], [8], [16]]])
    mask = additive_mask(torch.tensor([[True, True, False, True, True]]), hidden)
    merged = MergeJoint(1)(Tokens(hidden, mask, 3), keys, None)
    assert merged.hidden.flatten().tolist() == [1, 16, 3, 8]
    assert merged.mask is not None
    torch.testing.assert_close(merged.mask.exp().flatten(), torch.tensor([1.0, 1, 0.5, 1]))
    assert merged.text_length is None
    assert merged.sizes is None


@torch.no_grad()
def test_the_joint_baseline_merges_r_tokens_a_block() -> None:
    backbone = merging(mini(), r=2, joint=True)
    seen = tokens_read(backbone, lambda: example(backbone))
    assert [len(tokens) for tokens in seen] == [22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 3, 2]
    assert all(tokens.sizes is None for tokens in seen)


@pytest.mark.parametrize(("r", "percent"), [(8, 18), (13, 29)])
def test_full_size_vilt_saves_what_the_closed_form_says(r: int, percent: int) -> None:
    backbone, method = full_size_vilt(), Tome(TomeOptions(r=r))
    text, image = 40, 241
    with torch.device("meta"):
        method.adapt(backbone, torch.Generator())
    counts = count(backbone, method, (384, 640), text)
    read = [image - r * index for index in range(12)]
    blocks = sum(vilt_block_macs(text + each, text + each - r) for each in read)
    assert counts.macs["fusion"] == blocks + sum(map(matching_macs, read))
    assert counts.macs["method"] == 0
    full = 12 * vilt_block_macs(text + image, text + image)
    assert round(100 * (1 - blocks / full)) == percent


def test_full_size_meter_saves_what_the_closed_form_says(full_size_meter: Maker) -> None:
    backbone, method = full_size_meter(), Tome(TomeOptions(r=40))
    method.adapt(backbone, torch.Generator())
    counts = count(backbone, method, (384, 384), 32)
    read = [577 - 40 * depth for depth in range(6)]
    layers = sum(meter_layer_macs(32, each, 32) + meter_layer_macs(each, 32, each - 40) for each in read)
    assert counts.macs["fusion"] == layers + sum(map(matching_macs, read))


def test_eight_tokens_are_merged_at_full_size(full_size_meter: Maker) -> None:
    assert Tome()._merged_per_block(full_size_vilt(), 12) == (8,) * 12
    assert Tome()._merged_per_block(full_size_meter(), 6) == (8,) * 6


@torch.no_grad()
def test_tome_can_be_combined_with_lora() -> None:
    """LoRA's updates are merged in the blocks that reduce tokens."""
    backbone, lora = mini(), LoRA()
    lora.adapt(backbone, torch.Generator().manual_seed(0))
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    Tome(TomeOptions(r=2)).reduce_tokens(backbone)
    assert {name for name, parameter in backbone.named_parameters() if parameter.requires_grad} == trained
    for parameter in lora.method_parameters(backbone):
        parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    before = example(backbone.eval())
    assert (before - example(merging(mini(), r=2))).abs().max() > 1e-3
    lora.finalize(backbone)
    torch.testing.assert_close(example(backbone), before, atol=1e-5, rtol=0)


def test_options_are_written_in_a_spec() -> None:
    (spec,) = parse_specs("tome[r=4+2,proportional=false]")
    assert build_method(spec).options == TomeOptions(r=(4, 2), proportional=False)
    (spec,) = parse_specs("tome[r=8]")
    assert build_method(spec).options == TomeOptions(r=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": -1}, "r must be at least 0, got -1"),
        ({"r": (1, -2)}, "r must be at least 0, got -2"),
        ({"inflection": 2.0}, "inflection must be between -1 and 1, got 2.0"),
        ({"r": (1, 2), "inflection": 1.0}, "inflection shapes a single r"),
        ({"joint": True, "proportional": True}, "joint=true has neither token sizes"),
        ({"joint": True, "class_token": False}, "nor an image class token"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TomeOptions(**options)  # type: ignore[arg-type]


def test_options_that_do_not_suit_the_backbone_are_refused(make_meter: Maker) -> None:
    with pytest.raises(UserError, match="tome: r has 3 numbers of tokens for 2 blocks that merge in meter"):
        merging(make_meter(), r=(1, 1, 1))
    with pytest.raises(UserError, match="tome: joint=true is for ViLT; meter has two streams"):
        merging(make_meter(), joint=True)
    with pytest.raises(UserError, match="tome: class_token=false is for ViLT"):
        merging(make_meter(), class_token=False)
    backbone = mini()
    DAS(DASOptions(blocks=("3",))).adapt(backbone, torch.Generator())
    with pytest.raises(UserError, match=r"block joint\.3 of vilt-mini is a SkippedBlock, not a ViltBlock"):
        merging(backbone)
