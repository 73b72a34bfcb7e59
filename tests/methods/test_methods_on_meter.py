"""Every method on two streams of post-norm blocks: trained parameters, outputs before and after `finalize`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.backbones.base import Backbone
from harness.backbones.meter.model import MeterBackbone
from methods.adapters_library import AdaptersMethod
from methods.base import Method
from methods.das import DAS, DASOptions
from methods.lora import LoRA
from methods.prompts import DeepPrompt, PromptOptions, ShallowPrompt
from methods.skipping import ClassificationToken, SkippedBlock, skippable_sets
from tests.support.blocks import run
from tests.support.meter_methods import METHODS, every_method, randomize

Maker = Callable[..., MeterBackbone]
D = 64


def pooled(backbone: Backbone) -> Tensor:
    return backbone(backbone.example_inputs(2, 5, (32, 32), torch.Generator().manual_seed(1)))


@every_method
def test_method_trains_its_parameters_and_finalize_keeps_outputs(
    make: Callable[[], Method[Any]], make_meter: Maker
) -> None:
    method, backbone = make(), make_meter()
    held = list(backbone.parameters())  # so that a skipped block's memory is not taken by another's
    pretrained = {id(parameter) for parameter in held}
    method.adapt(backbone, torch.Generator().manual_seed(0))
    own = {id(parameter) for parameter in method.method_parameters(backbone)}
    assert own == {id(parameter) for parameter in backbone.parameters()} - pretrained
    chosen = {
        "full": pretrained,
        "pumer": pretrained,
        "bitfit": {id(p) for n, p in backbone.blocks.named_parameters() if n.endswith("bias")},
    }
    trains = {id(parameter) for parameter in backbone.parameters() if parameter.requires_grad}
    members = [each.name for each in method.members or (method,)]
    assert trains == own.union(*(chosen.get(name, set()) for name in members))
    randomize(method, backbone)
    before = pooled(backbone.eval())
    if trains:
        # In evaluation a route is not a function with a gradient.
        graded = pooled(backbone.train()) if method.dynamic else before
        graded.square().sum().backward()
        backbone.eval()
        dead = [
            n
            for n, p in backbone.named_parameters()
            if p.requires_grad and (p.grad is None or not p.grad.any())
        ]
        unseen = ("key.bias", "k_proj.bias")  # softmax does not see a shift of all scores
        assert [name for name in dead if not name.endswith(unseen)] == []
    method.finalize(backbone)
    torch.testing.assert_close(pooled(backbone), before, atol=1e-5, rtol=0)
    if own:
        assert (pooled(make_meter()) - before).abs().max() > 1e-3


def test_no_method_but_full_tuning_touches_the_encoders(make_meter: Maker) -> None:
    for name, make in METHODS.items():
        backbone = make_meter()
        inputs = backbone.example_inputs(2, 5, (32, 32), torch.Generator().manual_seed(1))
        plain = backbone.encode(inputs)
        method = make()
        method.adapt(backbone, torch.Generator().manual_seed(0))
        randomize(method, backbone)
        if name in ("vp", "tvp"):  # what the encoder reads is changed, not the encoder
            backbone.frame = None
        streams = backbone.encode(inputs)
        assert all(torch.equal(streams[stream].hidden, plain[stream].hidden) for stream in plain), name
        assert any(stream.hidden.requires_grad for stream in streams.values()) == (
            name in ("full", "pumer", "pumer, published")
        ), name


def test_lora_updates_query_and_value_of_both_attentions(make_meter: Maker) -> None:
    backbone = make_meter()
    LoRA().adapt(backbone, torch.Generator())
    for block in backbone.blocks:
        wrapped = {role for role, module in block.projections().items() if hasattr(module, "update")}
        assert wrapped == {
            f"{kind}_attention.{role}" for kind in ("self", "cross") for role in ("query", "value")
        }


@torch.no_grad()
def test_library_lora_and_ours_agree(make_meter: Maker) -> None:
    ours, theirs = make_meter(), make_meter()
    LoRA().adapt(ours, torch.Generator().manual_seed(0))
    AdaptersMethod("lora", {"r": 4, "alpha": 4}).adapt(theirs, torch.Generator())
    generator = torch.Generator().manual_seed(7)
    for mine, other in zip(ours.blocks, theirs.blocks, strict=True):
        for role, module in mine.projections().items():
            if hasattr(module, "update"):
                module.update.B.normal_(std=0.1, generator=generator)
                lora = other.projections()[role].loras["petl"]
                lora.lora_A.copy_(module.update.A)
                lora.lora_B.copy_(module.update.B)
    torch.testing.assert_close(pooled(ours), pooled(theirs), atol=1e-6, rtol=0)


@torch.no_grad()
def test_das_puts_its_adapters_where_they_are_published(make_meter: Maker) -> None:
    plain, backbone = make_meter(), make_meter()
    DAS(DASOptions(blocks=("text.1",))).adapt(backbone, torch.Generator().manual_seed(0))
    block, old = backbone.blocks[0], plain.blocks[0]
    assert set(block.parallel) == {"self_attention", "cross_attention"}
    assert set(block.post_norm) == {"mlp"}
    assert isinstance(backbone.blocks[1], SkippedBlock)
    hidden, context = torch.randn(2, 5, D), torch.randn(2, 7, D)

    def attended(attention: Any, states: Tensor, read: Tensor, adapter: Any) -> Tensor:
        result = attention.output.dense(old._attend(attention, states, read, None))
        return attention.output.LayerNorm(result + states + adapter(states))

    first = attended(old.attention, hidden, hidden, block.parallel["self_attention"])
    second = attended(old.crossattention, first, context, block.parallel["cross_attention"])
    fed = old.output.LayerNorm(old.output.dense(old.intermediate(second)) + second)
    torch.testing.assert_close(run(block, hidden, None, context), fed + block.post_norm["mlp"](second))


@torch.no_grad()
def test_das_trains_a_classification_token_that_starts_as_robertas(make_meter: Maker) -> None:
    backbone = make_meter()
    DAS(DASOptions(blocks=("text.1",))).adapt(backbone, torch.Generator())
    token = backbone.prompt
    assert isinstance(token, ClassificationToken)
    assert token.token.shape == (1, 1, D)
    table = backbone.model.text_encoder.embeddings.word_embeddings.weight
    assert torch.equal(token.token[0, 0], table[0])
    streams = backbone.encode(backbone.example_inputs(2, 5, (32, 32), torch.Generator()))
    after = token(streams)
    assert torch.equal(after["text"].hidden[:, 0], table[:1].expand(2, -1))
    assert torch.equal(after["text"].hidden[:, 1:], streams["text"].hidden[:, 1:])
    assert after["text"].token_type == 0
    assert after["image"] is streams["image"]


@torch.no_grad()
def test_the_image_layer_beside_a_skipped_text_layer_reads_the_incoming_text(make_meter: Maker) -> None:
    backbone = make_meter()
    DAS(DASOptions(blocks=("text.0",))).adapt(backbone, torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    backbone.blocks[2].register_forward_pre_hook(lambda _module, args: seen.append(args[0].context.hidden))
    incoming: list[Tensor] = []
    backbone.blocks[0].register_forward_pre_hook(lambda _module, args: incoming.append(args[0].tokens.hidden))
    pooled(backbone)
    assert torch.equal(seen[0], incoming[0])


def test_cost_cases_with_equal_macs_are_listed_once(make_meter: Maker) -> None:
    backbone = make_meter()
    assert skippable_sets(2, backbone) == [
        ("image.0", "image.1"),
        ("text.0", "image.0"),
        ("text.0", "text.1"),
    ]


@torch.no_grad()
def test_prompts_join_both_streams_and_keep_their_token_types(make_meter: Maker) -> None:
    backbone = make_meter()
    ShallowPrompt(PromptOptions(tokens=3)).adapt(backbone, torch.Generator().manual_seed(0))
    streams = backbone.encode(backbone.example_inputs(2, 5, (32, 32), torch.Generator()))
    prompted = backbone.prompt(streams)
    assert {name: stream.hidden.shape[1] for name, stream in prompted.items()} == {"text": 8, "image": 8}
    assert {name: stream.token_type for name, stream in prompted.items()} == {"text": 0, "image": 1}
    after = backbone.run_blocks(streams)
    assert after["text"].hidden.shape == (2, 8, D)
    deep = make_meter()
    DeepPrompt(PromptOptions(tokens=3)).adapt(deep, torch.Generator().manual_seed(0))
    assert deep.run_blocks(streams)["image"].hidden.shape == (2, 5, D)
