"""Image-text pairs: parts that depend on one side only are computed once, with equal scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ViltConfig

from harness.backbones.base import Backbone
from harness.backbones.block import BlockInput, BlockOutput, Tokens
from harness.backbones.inputs import Inputs
from harness.backbones.meter.model import MeterBackbone
from harness.backbones.pairs import distinct_rows
from harness.backbones.vilt.model import ViltBackbone
from harness.backbones.vilt.processor import ViltProcessor
from tests.support.meter_methods import METHODS, every_method, randomize

Maker = Callable[..., MeterBackbone]
LENGTHS = (3, 6, 6, 4)


def pairs_of(images: int, side: int = 32, sizes: Tensor | None = None) -> Inputs:
    """Every image with the same four texts, of which the second and the third are equal."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 40, (len(LENGTHS), max(LENGTHS)), generator=generator)
    ids[2] = ids[1]
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    pixels = torch.randn(images, 3, side, side, generator=generator)
    return Inputs(ids.where(mask, 1).repeat(images, 1), mask.repeat(images, 1), pixels, sizes)


def test_every_distinct_text_appears_once() -> None:
    inputs = pairs_of(2)
    distinct, rows = distinct_rows(inputs)
    assert len(distinct) == 3
    assert torch.equal(rows.of("text", distinct.input_ids), inputs.input_ids)
    assert distinct.text_mask is not None
    assert torch.equal(rows.of("text", distinct.text_mask), inputs.text_mask)  # type: ignore[arg-type]
    assert rows.image.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_distinct_texts_are_found_without_asking_the_device() -> None:
    """On the meta device nothing can be asked for its value, which on a GPU would wait for it."""
    inputs = pairs_of(2)
    expected, rows = distinct_rows(inputs)
    moved = replace(inputs, host_ids=inputs.ids_on_host()).to(torch.device("meta"))
    distinct, found = distinct_rows(moved)
    assert distinct.input_ids.shape == expected.input_ids.shape
    assert distinct.host_ids is not None
    assert torch.equal(distinct.host_ids, expected.ids_on_host())
    assert found.text.shape == rows.text.shape


def test_padding_does_not_count_as_a_token() -> None:
    ids = torch.tensor([[5, 6, 1], [5, 6, 1]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    distinct, rows = distinct_rows(Inputs(ids, mask, torch.zeros(1, 3, 2, 2)))
    assert len(distinct) == 2
    assert rows.text[0] != rows.text[1]


@every_method
@torch.no_grad()
def test_meter_scores_pairs_as_it_scores_each_alone(make: Callable[[], Any], make_meter: Maker) -> None:
    method, backbone = make(), make_meter()
    method.adapt(backbone, torch.Generator().manual_seed(0))
    randomize(method, backbone)
    backbone.eval()
    inputs = pairs_of(3)
    expected = backbone(inputs.paired())
    assert expected.std(dim=0).max() > 1e-2  # pairs differ
    torch.testing.assert_close(backbone.forward_pairs(inputs), expected, atol=1e-5, rtol=0)
    method.finalize(backbone)
    torch.testing.assert_close(backbone.forward_pairs(inputs), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("blocks", [("text.0",), ("image.0",), ("text.0", "image.0")])
@torch.no_grad()
def test_blocks_skipped_at_the_first_depth(blocks: tuple[str, ...], make_meter: Maker) -> None:
    from methods.das import DAS, DASOptions

    method, backbone = DAS(DASOptions(blocks=blocks)), make_meter()
    method.adapt(backbone, torch.Generator().manual_seed(0))
    randomize(method, backbone)
    inputs = pairs_of(2)
    backbone.eval()
    torch.testing.assert_close(backbone.forward_pairs(inputs), backbone(inputs.paired()), atol=1e-5, rtol=0)


class Pruning(torch.nn.Module):
    """A text layer that keeps only the first two image tokens."""

    name, stream = "text.0", "text"

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, inputs: BlockInput) -> BlockOutput:
        assert inputs.context is not None
        return BlockOutput(self.block(inputs).tokens, context=inputs.context.first(2))


@pytest.mark.parametrize("sequential", [False, True])
@torch.no_grad()
def test_image_tokens_reduced_at_the_first_depth(sequential: bool, make_meter: Maker) -> None:
    backbone = make_meter().eval()
    whole = backbone(pairs_of(2).paired())
    backbone.blocks[0] = Pruning(backbone.blocks[0])
    backbone.sequential = sequential
    inputs = pairs_of(2)
    expected = backbone(inputs.paired())
    assert (expected - whole).abs().max() > 1e-3
    torch.testing.assert_close(backbone.forward_pairs(inputs), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_sequential_image_layers_read_the_updated_text(make_meter: Maker) -> None:
    backbone = make_meter(num_hidden_layers=1).eval()
    text, image = Tokens(torch.randn(1, 3, 64)), Tokens(torch.randn(1, 5, 64))
    updated = backbone.blocks[0](BlockInput(text, image)).tokens
    for sequential, read in ((False, text), (True, updated)):
        backbone.sequential = sequential
        for queries in (None, 1):
            after = backbone.run_depths({"text": text, "image": image}, queries=queries)
            expected = backbone.blocks[1](BlockInput(image, read, queries)).tokens.hidden
            torch.testing.assert_close(after["image"].hidden, expected)
            torch.testing.assert_close(after["text"].hidden[:, 0], updated.hidden[:, 0])


def test_gradients_are_those_of_the_pairs(make_meter: Maker) -> None:
    inputs = pairs_of(2)
    gradients = []
    for forward in (lambda b: b(inputs.paired()), lambda b: b.forward_pairs(inputs)):
        backbone = make_meter(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # type: ignore[arg-type]
        for mode in (True, False):
            forward(backbone.train(mode)).square().mean().backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3, msg=name)


def test_dropout_is_drawn_for_every_pair(make_meter: Maker) -> None:
    backbone = make_meter(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.0).train()  # type: ignore[arg-type]
    features = backbone.forward_pairs(pairs_of(1))
    assert not torch.equal(features[1], features[2])  # one text, twice


@torch.no_grad()
def test_encoders_and_one_sided_parts_process_each_row_once(make_meter: Maker) -> None:
    backbone = make_meter().eval()
    seen: dict[str, int] = {}

    def count(name: str, module: torch.nn.Module) -> None:
        module.register_forward_pre_hook(lambda _, args: seen.__setitem__(name, len(args[0])))

    count("text encoder", backbone.model.text_projection)
    count("image encoder", backbone.model.image_projection)
    text, image = backbone.blocks[0], backbone.blocks[2]
    count("image's keys for the text", text.crossattention.self.key)
    count("the image's queries", image.crossattention.self.query)
    count("the image's self-attention", image.attention.self.value)
    count("the pairs' feed-forward", image.intermediate)
    backbone.forward_pairs(pairs_of(2))
    assert seen == {
        "text encoder": 3,
        "image encoder": 2,
        "image's keys for the text": 2,
        "the image's queries": 2,
        "the image's self-attention": 2,
        "the pairs' feed-forward": 8,
    }


def small_vilt() -> ViltBackbone:
    torch.manual_seed(0)
    config = ViltConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        max_position_embeddings=12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )
    return ViltBackbone(config, ViltProcessor(None, 32, 8, 12))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_vilt_scores_pairs_as_it_scores_each_alone(padded: bool, training: bool) -> None:
    sizes = torch.tensor([[32, 24], [16, 32]]) if padded else None
    inputs, backbone = pairs_of(2, 32, sizes), small_vilt().train(training)
    expected = backbone(inputs.paired())
    assert expected.std(dim=0).max() > 1e-3
    torch.testing.assert_close(backbone.forward_pairs(inputs), expected, atol=1e-6, rtol=0)


def test_backbone_without_pair_encoding_uses_the_default() -> None:
    backbone: Any = lambda inputs: inputs.pixels.flatten(1).sum(dim=1)  # noqa: E731
    inputs = pairs_of(2)
    features = Backbone.forward_pairs(backbone, inputs)
    assert torch.equal(features, inputs.pixels.flatten(1).sum(dim=1).repeat_interleave(4))


def test_list_of_methods_is_complete() -> None:
    from harness.registry import BUILT_IN

    assert set(BUILT_IN["methods"]) <= set(METHODS)
