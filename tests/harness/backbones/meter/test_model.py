from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from harness.backbones.block import BlockInput, Tokens
from harness.backbones.inputs import Inputs
from harness.backbones.meter.model import MeterBackbone
from harness.errors import UserError
from tests.support.blocks import run

Maker = Callable[..., MeterBackbone]


def example(backbone: MeterBackbone) -> Inputs:
    return backbone.example_inputs(2, 6, (32, 32), torch.Generator().manual_seed(1))


def test_blocks_are_named_by_stream_and_depth(full_size_meter: Maker) -> None:
    backbone = full_size_meter()
    names = [f"{stream}.{depth}" for stream in ("text", "image") for depth in range(6)]
    assert backbone.block_names == tuple(names)
    assert [block.name for block in backbone.blocks] == names
    assert {sum(p.numel() for p in block.parameters()) for block in backbone.blocks} == {9_451_776}
    assert len(backbone.model.image_encoder.encoder.layers) == 11
    assert (backbone.width, backbone.feature_dim) == (768, 1536)


@torch.no_grad()
def test_both_layers_of_a_depth_read_the_states_before_it(make_meter: Maker) -> None:
    backbone = make_meter()
    streams = backbone.encode(example(backbone))
    rows = backbone.model.token_type_embeddings.weight
    text, image = streams["text"].hidden + rows[0], streams["image"].hidden + rows[1]
    for depth in range(2):
        text_block, image_block = backbone.blocks[depth], backbone.blocks[2 + depth]
        text, image = run(text_block, text, None, image), run(image_block, image, None, text)
    after = backbone.run_blocks(streams)
    torch.testing.assert_close(after["text"].hidden, text)
    torch.testing.assert_close(after["image"].hidden, image)
    pooled = [
        torch.tanh(pooler.dense(states[:, 0]))
        for pooler, states in ((backbone.model.text_pooler, text), (backbone.model.image_pooler, image))
    ]
    torch.testing.assert_close(backbone.fuse(streams), torch.cat(pooled, dim=1))


@torch.no_grad()
def test_token_types_are_added_in_fuse_so_that_encode_does_not_depend_on_them(make_meter: Maker) -> None:
    backbone = make_meter()
    inputs = example(backbone)
    before, pooled = backbone.encode(inputs), backbone(inputs)
    backbone.widen_token_types(3)
    assert torch.equal(backbone(replace(inputs, image_token_type=2)), pooled)
    backbone.model.token_type_embeddings.weight[1:].add_(1.0)
    after = backbone.encode(inputs)
    assert all(torch.equal(before[name].hidden, after[name].hidden) for name in before)
    assert not torch.equal(backbone(inputs), pooled)


@torch.no_grad()
def test_padding_of_text_changes_nothing(make_meter: Maker) -> None:
    backbone = make_meter()
    inputs = example(backbone)
    mask = (torch.arange(9) < 6).expand(2, 9)
    padded = Inputs(F.pad(inputs.input_ids, (0, 3), value=backbone.processor.pad_id), mask, inputs.pixels)
    torch.testing.assert_close(backbone(padded), backbone(inputs), atol=1e-6, rtol=0)


@torch.no_grad()
def test_evaluation_is_deterministic_and_the_encoders_have_no_dropout(make_meter: Maker) -> None:
    backbone = make_meter()
    inputs = example(backbone)
    before = torch.random.get_rng_state()
    assert torch.equal(backbone(inputs), backbone(inputs))
    backbone.train()
    first, second = backbone.encode(inputs), backbone.encode(inputs)
    assert all(torch.equal(first[name].hidden, second[name].hidden) for name in first)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(backbone(inputs), backbone(inputs))


def test_components_are_disjoint_and_complete(make_meter: Maker) -> None:
    backbone = make_meter()
    listed = [
        id(parameter)
        for modules in backbone.components().values()
        for module in modules
        for parameter in module.parameters()
    ]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(parameter) for parameter in backbone.parameters()}


def test_projections_can_be_replaced_by_role(make_meter: Maker) -> None:
    block = make_meter().blocks[0]
    roles = block.projections()
    assert len(roles) == len({id(module) for module in roles.values()}) == 10
    maps = {id(m) for m in block.modules() if isinstance(m, torch.nn.Linear)}
    assert {id(module) for module in roles.values()} == maps
    for role in roles:
        new = torch.nn.Identity()
        block.set_projection(role, new)
        assert block.projections()[role] is new
    with pytest.raises(KeyError):
        block.set_projection("attention.query", torch.nn.Identity())


@torch.no_grad()
def test_slots_are_before_and_after_the_norm(make_meter: Maker) -> None:
    block = make_meter().blocks[0]
    hidden, context = torch.randn(2, 5, 64), torch.randn(2, 7, 64)
    plain = run(block, hidden, None, context)
    block.post_norm["mlp"] = torch.nn.Linear(64, 64)
    seen: list[torch.Tensor] = []
    block.post_norm["mlp"].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    torch.testing.assert_close(run(block, hidden, None, context), plain + block.post_norm["mlp"](seen[0]))
    del block.post_norm["mlp"]
    block.sequential["mlp"], block.parallel["mlp"] = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
    inner = block.sequential["mlp"](block.output.dense(block.intermediate(seen[0])))
    expected = block.output.LayerNorm(inner + block.parallel["mlp"](seen[0]) + seen[0])
    torch.testing.assert_close(run(block, hidden, None, context), expected)


def test_images_and_texts_beyond_the_position_embeddings_are_refused(make_meter: Maker) -> None:
    backbone = make_meter()
    inputs = example(backbone)
    with pytest.raises(UserError, match="13 tokens is longer than the 12 positions"):
        backbone(replace(inputs, input_ids=torch.full((2, 13), 5)))
    with pytest.raises(UserError, match=r"48x32 pixels.*32x32.*--image-size"):
        backbone(replace(inputs, pixels=torch.zeros(2, 3, 48, 32)))
    with pytest.raises(UserError, match="padded images"):
        backbone(replace(inputs, image_sizes=torch.tensor([[16, 32], [32, 32]])))
    with pytest.raises(ValueError, match="context is missing"):
        backbone.blocks[0](BlockInput(Tokens(torch.zeros(1, 2, 64))))


def test_digest_depends_on_weights_and_sizes(make_meter: Maker) -> None:
    assert make_meter().digest() == make_meter().digest()
    other = make_meter()
    other.model.text_pooler.dense.bias.data[0] += 1
    digests = {make_meter().digest(), other.digest(), make_meter(num_attention_heads=8).digest()}
    assert len(digests) == 3
