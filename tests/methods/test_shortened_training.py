"""In training and ranking the last blocks compute only the pooled token; results must not change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.block import BlockInput, BlockOutput, Tokens
from harness.backbones.inputs import Inputs
from harness.backbones.meter.model import MeterBackbone
from methods.adapter import SequentialAdapter
from methods.adapters_library import AdaptersMethod
from methods.base import Method
from methods.bitfit import BitFit
from methods.composed import Composed
from methods.das import DAS, DASOptions
from methods.full import Full
from methods.lora import LoRA
from methods.parallel import ParallelAdapter
from methods.prompts import DeepPrompt, PromptOptions, ShallowPrompt
from methods.pumer import Pumer, PumerOptions
from methods.roe import RoE
from methods.skipping import GatedBlock
from methods.tome import Tome, TomeOptions
from methods.visual_prompt import VP
from tests.support.meter_methods import randomize
from tests.support.small_vilt import mini

Maker = Callable[..., MeterBackbone]

METHODS: dict[str, Callable[[tuple[str, ...]], Method[Any]]] = {
    "full": lambda last: Full(),
    "bitfit": lambda last: BitFit(),
    "lora": lambda last: LoRA(),
    "adapter": lambda last: SequentialAdapter(),
    "parallel": lambda last: ParallelAdapter(),
    "shallow_prompt": lambda last: ShallowPrompt(PromptOptions(tokens=3)),
    "deep_prompt": lambda last: DeepPrompt(PromptOptions(tokens=3)),
    "das": lambda last: DAS(DASOptions(blocks=("0",) if len(last) == 1 else ("text.0",))),
    "das, last blocks skipped": lambda last: DAS(DASOptions(blocks=last)),
    "roe": lambda last: RoE(),
    "vp": lambda last: VP(),
    "tome": lambda last: Tome(TomeOptions(r=2)),
    "pumer": lambda last: Pumer(PumerOptions(text=0.4)),
    "pumer, last layer": lambda last: Pumer(PumerOptions(layers=(int(last[0].split(".")[-1]),), text=0.4)),
    "pumer, published": lambda last: Pumer(PumerOptions(variant="published")),
    "das+deep_prompt+lora": lambda last: Composed(
        [DAS(DASOptions(blocks=last)), LoRA(), DeepPrompt(PromptOptions(tokens=3))]
    ),
    "lora+tome": lambda last: Composed([LoRA(), Tome(TomeOptions(r=2))]),
}
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS.keys())


def inputs_with_padding(backbone: Backbone, image_size: int) -> Inputs:
    inputs = backbone.example_inputs(2, 6, (image_size, image_size), torch.Generator().manual_seed(1))
    mask = torch.ones_like(inputs.input_ids, dtype=torch.bool)
    mask[1, 4:] = False
    return Inputs(inputs.input_ids, mask, inputs.pixels)


def features_and_gradients(backbone: Backbone, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
    backbone.zero_grad()
    backbone.train()
    for module in backbone.modules():  # drawn for as many tokens as there are
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    features = backbone(inputs)
    features.square().sum().backward()
    gradients = {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}
    return features.detach(), gradients


def assert_same_either_way(backbone: Backbone, inputs: Inputs) -> None:
    backbone.pooled_token_only = True
    features, gradients = features_and_gradients(backbone, inputs)
    backbone.pooled_token_only = False
    whole_features, whole_gradients = features_and_gradients(backbone, inputs)
    torch.testing.assert_close(features, whole_features, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == whole_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, whole_gradients[name], atol=1e-5, rtol=1e-4, msg=name)


def adapted(backbone: Backbone, method: Method[Any]) -> Backbone:
    assert method.per_token
    method.adapt(backbone, torch.Generator().manual_seed(0))
    randomize(method, backbone)
    for parameter in backbone.common_parameters():
        parameter.requires_grad_(True)
    return backbone


@every_method
def test_shortened_training_of_vilt_has_equal_gradients(
    make: Callable[[tuple[str, ...]], Method[Any]],
) -> None:
    backbone = adapted(mini(), make(("11",)))
    assert_same_either_way(backbone, inputs_with_padding(backbone, 64))


@every_method
def test_shortened_training_of_meter_has_equal_gradients(
    make: Callable[[tuple[str, ...]], Method[Any]], make_meter: Maker
) -> None:
    backbone = adapted(make_meter(), make(("text.1", "image.1")))
    assert_same_either_way(backbone, inputs_with_padding(backbone, 32))


def pairs_with_padding(backbone: Backbone, image_size: int) -> Inputs:
    """Two images with two texts each."""
    inputs = inputs_with_padding(backbone, image_size)
    return replace(inputs, input_ids=inputs.input_ids.repeat(2, 1), text_mask=inputs.text_mask.repeat(2, 1))  # type: ignore[union-attr]


def assert_ranks_the_same_either_way(backbone: Backbone, inputs: Inputs) -> None:
    backbone.eval()
    with torch.inference_mode():
        whole = backbone(inputs.paired())
        backbone.pooled_token_only = True
        torch.testing.assert_close(backbone.forward_pairs(inputs), whole, atol=1e-5, rtol=1e-5)


@every_method
def test_shortened_ranking_with_vilt_has_equal_scores(make: Callable[[tuple[str, ...]], Method[Any]]) -> None:
    backbone = adapted(mini(), make(("11",)))
    assert_ranks_the_same_either_way(backbone, pairs_with_padding(backbone, 64))


@every_method
def test_shortened_ranking_with_meter_has_equal_scores(
    make: Callable[[tuple[str, ...]], Method[Any]], make_meter: Maker
) -> None:
    backbone = adapted(make_meter(), make(("text.1", "image.1")))
    assert_ranks_the_same_either_way(backbone, pairs_with_padding(backbone, 32))


def widths_seen(
    backbone: Backbone, inputs: Inputs, run: Callable[[Inputs], object] | None = None
) -> list[int]:
    """How many tokens the feed-forward of each block reads in `run` (default: the forward pass), by block."""
    seen: list[int] = []
    handles = [
        block.intermediate.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[1]))
        for block in backbone.blocks
    ]
    (run or backbone)(inputs)
    for handle in handles:
        handle.remove()
    return seen


def test_training_and_ranking_are_shortened_and_no_other_evaluation() -> None:
    backbone = mini()
    inputs = inputs_with_padding(backbone, 64)
    tokens = 6 + 1 + (64 // backbone.processor.granularity) ** 2
    assert widths_seen(backbone.train(), inputs) == [tokens] * 12
    backbone.pooled_token_only = True
    assert widths_seen(backbone.train(), inputs) == [tokens] * 11 + [1]
    assert widths_seen(backbone.eval(), inputs) == [tokens] * 12
    assert widths_seen(backbone, inputs, backbone.forward_pairs) == [tokens] * 12  # as cost is measured
    pairs = pairs_with_padding(backbone, 64)
    assert widths_seen(backbone, pairs, backbone.forward_pairs) == [tokens] * 11 + [1]


def test_both_streams_of_meter_are_shortened(make_meter: Maker) -> None:
    backbone = make_meter()
    backbone.pooled_token_only = True
    inputs = inputs_with_padding(backbone, 32)
    assert widths_seen(backbone.train(), inputs) == [6, 5, 1, 1]
    assert widths_seen(backbone.eval(), inputs) == [6, 5, 6, 5]
    pairs = pairs_with_padding(backbone, 32)
    assert widths_seen(backbone, pairs, backbone.forward_pairs) == [6, 5, 1, 1]


@pytest.mark.parametrize("skip", [False, True])
def test_gated_block_is_shortened_whether_skipped_or_not(skip: bool) -> None:
    backbone = mini()
    das = DAS(DASOptions(blocks=("11",)))
    shortcut = das._shortcut(backbone, 11, torch.Generator().manual_seed(0))
    backbone.blocks[11] = GatedBlock(backbone.blocks[11], shortcut)
    backbone.blocks[11].skip = skip
    inputs = BlockInput(Tokens(torch.randn(2, 5, backbone.width)), queries=1)
    assert backbone.blocks[11](inputs).tokens.hidden.shape == (2, 1, backbone.width)
    assert_same_either_way(backbone, inputs_with_padding(backbone, 64))


def test_module_that_ignores_queries_runs_on_all_tokens() -> None:
    """A third-party module in place of a block: its output is cut."""

    class Foreign(nn.Module):
        def forward(self, inputs: BlockInput) -> BlockOutput:
            return BlockOutput(inputs.tokens.with_hidden(inputs.tokens.hidden.flip(1)))

    backbone = mini()
    backbone.blocks[11] = Foreign()
    assert_same_either_way(backbone, inputs_with_padding(backbone, 64))


def test_method_without_per_token_is_trained_on_all_tokens() -> None:
    assert not AdaptersMethod("par_bn").per_token
    assert not Method.per_token
