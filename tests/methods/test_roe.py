"""RoE: published sizes and schedule, routes per example, skipping that costs only the shortcut, decoding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbones.base import Backbone, BackboneOptions
from harness.backbones.block import BlockInput, Tokens
from harness.backbones.inputs import Inputs
from harness.backbones.llava.loading import load_llava
from harness.backbones.meter.model import MeterBackbone
from harness.backbones.vilt.loading import full_size_config
from harness.errors import UserError
from harness.measure.flops import count_macs
from methods.base import Method, TrainingPart
from methods.roe import FixedRoute, RoE, RoEOptions
from methods.roe_schedule import Phase, Routing, initial_bias, phase_at
from tests.support.folding import tiny_vilt
from tests.support.measured_models import build
from tests.support.tiny_llava import prompts, tiny_llava

Maker = Callable[..., MeterBackbone]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)  # of small backbones without pretrained weights


def size(method: Method[Any], backbone: Backbone) -> int:
    return sum(each.numel() for each in method.method_parameters(backbone))


def adapted(backbone: Backbone, **options: Any) -> tuple[RoE, Any]:
    method = RoE(RoEOptions(**options))
    method.adapt(backbone, seeded())
    let_routes_differ(backbone.eval())
    return method, backbone


@torch.no_grad()
def let_routes_differ(backbone: Any) -> None:
    """Routers that let about half of the examples run a block, from the first depth on, which all run."""
    backbone.prompt.tokens.normal_(generator=seeded(4))
    for index, block in enumerate(backbone.blocks):
        found: list[Tensor] = []
        hook = block.router.register_forward_pre_hook(
            lambda module, given, found=found: found.append(given[0])
        )
        backbone(varied(backbone))
        hook.remove()
        mean = found[0].mean(dim=0)
        direction = torch.randn(len(mean), generator=seeded(index))
        if found[0].std(dim=0).max() < 1e-6:  # the tokens have read nothing yet
            direction = mean
        else:
            direction -= (direction @ mean) / (mean @ mean) * mean
        block.router.map.weight.copy_(torch.stack([direction, -direction]))


def varied(backbone: Backbone, rows: int = 8) -> Inputs:
    if backbone.name == "llava":
        return prompts(rows)
    inputs = backbone.example_inputs(rows, 5, (32, 32), seeded(1))
    mask = torch.ones(rows, 5, dtype=torch.bool)
    mask[1::2, 3:] = False
    return replace(inputs, text_mask=mask)


@pytest.fixture(params=["vilt", "meter", "llava"])
def backbone(request: pytest.FixtureRequest, make_meter: Maker) -> Backbone:
    return {"vilt": tiny_vilt, "meter": make_meter, "llava": tiny_llava}[request.param]()


def test_parameters_on_llava_are_the_published_ones() -> None:
    with torch.device("meta"):
        backbone = load_llava(BackboneOptions(weights="random"))
        method = RoE()
        method.adapt(backbone, seeded())
    assert size(method, backbone) == 268_967_936 == 32 * (8_388_608 + 16_384) + 2 * 4096


def test_parameters_on_vilt_follow_the_closed_form() -> None:
    with torch.device("meta"):
        backbone = build(full_size_config())
        method = RoE()
        method.adapt(backbone, seeded())
    assert size(method, backbone) == 3_577_344 == 12 * (294_912 + 3_072) + 1_536


@pytest.mark.parametrize(
    ("sparsity", "bias"), [(0.1, 0.55279), (0.2, 0.36754), (0.3, 0.2254), (0.4, 0.10557)]
)
def test_the_initial_bias_is_the_published_one(sparsity: float, bias: float) -> None:
    assert initial_bias(sparsity) == pytest.approx(bias, abs=5e-6)


def test_the_three_stages_are_those_of_the_public_code() -> None:
    options = RoEOptions()
    phases = [phase_at(step, 1000, options) for step in range(1000)]
    assert [phases[step].stage for step in (0, 299, 300, 499, 500, 999)] == [
        "adapters",
        "adapters",
        "routers",
        "routers",
        "all",
        "all",
    ]
    assert phases[0].skip == 0.3
    assert phases[300] == Phase("routers", bias=initial_bias(0.3), temperature=10.0)
    assert phases[305].bias == pytest.approx(0.85 * initial_bias(0.3))
    assert phases[500].temperature == pytest.approx(1.285, abs=1e-3)
    assert phases[500].bias == 0
    assert phases[999].temperature == pytest.approx(0.0080, abs=1e-4)


def test_short_runs_have_all_three_stages() -> None:
    stages = [phase_at(step, 10, RoEOptions()).stage for step in range(10)]
    assert stages == ["adapters"] * 3 + ["routers"] * 2 + ["all"] * 5


@torch.no_grad()
def test_examples_of_a_batch_take_the_routes_that_they_take_alone(backbone: Backbone) -> None:
    method, backbone = adapted(backbone)
    inputs = varied(backbone)
    together: list[Tensor] = []
    (routes,) = method.routes(backbone, lambda: together.append(backbone(inputs)))
    assert len({tuple(row.tolist()) for row in routes}) > 1
    for row in range(len(inputs)):
        alone: list[Tensor] = []
        given = inputs.examples(row, row + 1)
        (own,) = method.routes(backbone, lambda given=given, alone=alone: alone.append(backbone(given)))
        assert torch.equal(own[0], routes[row])
        torch.testing.assert_close(alone[0][0], together[0][row], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_outputs_are_those_of_a_mixture_with_hard_weights(backbone: Backbone) -> None:
    """The training forward pass with weights 0 and 1 computes both ways for all examples."""
    method, backbone = adapted(backbone)
    inputs = varied(backbone)
    (routes,) = method.routes(backbone, lambda: backbone(inputs))
    assert routes.any()
    assert not routes.all()
    expected = backbone(inputs)
    method._routing.phase = Phase("all", temperature=1e-6)
    for module in backbone.modules():
        module.training = hasattr(module, "routing")  # no dropout
    torch.testing.assert_close(backbone(inputs), expected, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_no_other_token_reads_the_routing_tokens(backbone: Backbone) -> None:
    _, backbone = adapted(backbone)
    for block in backbone.blocks:
        block.forced = True  # type: ignore[assignment]
    inputs = varied(backbone)
    routed = backbone(inputs)
    plain = copy.deepcopy(backbone)
    plain.prompt = None
    for index, block in enumerate(plain.blocks):
        plain.blocks[index] = block.block  # type: ignore[assignment]
    torch.testing.assert_close(routed, plain(inputs), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_routing_tokens_read_text_and_image(backbone: Backbone) -> None:
    """The last block's router changes its mind with either."""
    _, backbone = adapted(backbone)
    for block in backbone.blocks:
        block.forced = True  # type: ignore[assignment]
    inputs = varied(backbone)
    found: list[Tensor] = []
    backbone.blocks[-1].router.register_forward_hook(lambda module, given, logits: found.append(logits))
    ids = inputs.input_ids.clone()
    ids[:, 1] = (ids[:, 1] + 7) % 50
    for given in (inputs, replace(inputs, input_ids=ids), replace(inputs, pixels=-inputs.pixels)):
        backbone(given)
    assert all(bool(((found[0] - other).abs() > 1e-6).all()) for other in found[1:])


@torch.no_grad()
def test_the_deployed_form_has_the_same_outputs_and_routes(backbone: Backbone) -> None:
    method, backbone = adapted(backbone)
    inputs = varied(backbone)
    before, (routes,) = backbone(inputs), method.routes(backbone, lambda: backbone(inputs))
    method.finalize(backbone)
    assert torch.equal(method.routes(backbone, lambda: backbone(inputs))[0], routes)
    torch.testing.assert_close(backbone(inputs), before, atol=1e-5, rtol=1e-5)
    assert all(type(block.block).__name__.startswith("Folded") for block in backbone.blocks)


def macs(method: RoE, backbone: Backbone, inputs: Inputs) -> dict[str, int]:
    head = nn.Identity()
    counts = count_macs(
        backbone,
        head,
        lambda: backbone(inputs),
        method.method_modules(backbone),
        text_length=5,
        image_size=(32, 32),
    )
    return dict(counts.macs)


@torch.no_grad()
def test_a_skipped_block_costs_only_its_router_and_shortcut() -> None:
    width, tokens, inner, bottleneck = 32, 5 + 5 + 2, 64, 8
    counts = []
    for skipped in ((), ("joint.1",)):
        method = RoE()
        method.decide(FixedRoute(skipped))
        backbone = tiny_vilt()
        method.adapt(backbone, seeded())
        method.finalize(backbone.eval())
        counts.append(macs(method, backbone, backbone.example_inputs(1, 5, (32, 32), seeded(1))))
    block = tokens * (4 * width * width + 2 * width * inner) + 2 * tokens * tokens * width
    assert counts[0]["fusion"] - counts[1]["fusion"] == block
    assert counts[0]["method"] == 3 * 2 * width * 2
    assert counts[1]["method"] - counts[0]["method"] == 2 * tokens * width * bottleneck


@torch.no_grad()
def test_macs_of_an_example_depend_on_its_route() -> None:
    method, backbone = adapted(tiny_vilt())
    inputs = varied(backbone, 24)
    (routes,) = method.routes(backbone, lambda: backbone(inputs))
    costs = [macs(method, backbone, inputs.examples(row, row + 1))["fusion"] for row in range(24)]
    width, tokens, inner = 32, 5 + 5 + 2, 64
    block = tokens * (4 * width * width + 2 * width * inner) + 2 * tokens * tokens * width
    assert costs == [int(row.sum()) * block for row in routes]
    assert len({tuple(row.tolist()) for row in routes}) > 1


@pytest.mark.parametrize("candidates", [[[7, 8, 9], [10], [11, 12]]])
@torch.no_grad()
def test_decoding_keeps_the_route_of_the_prompt(candidates: list[list[int]]) -> None:
    method, backbone = adapted(tiny_llava())
    inputs = prompts(6)
    (routes,) = method.routes(backbone, lambda: backbone(inputs))
    assert len({tuple(row.tolist()) for row in routes}) > 1
    written = torch.empty(6, 0, dtype=torch.long)
    for _ in range(5):  # without a cache, each token from the whole sequence
        following = torch.cat([written, torch.zeros(6, 1, dtype=torch.long)], dim=1)
        token = backbone.answer_logits(inputs, following)[:, -1].argmax(dim=-1)
        written = torch.cat([written, token[:, None]], dim=1)
    assert torch.equal(backbone.generate(inputs, 5, stop=()), written)
    scores = backbone.answer_scores(inputs, candidates)
    for column, candidate in enumerate(candidates):
        answers = torch.tensor(candidate).expand(6, -1)
        likelihood = backbone.answer_logits(inputs, answers).log_softmax(dim=-1)
        summed = likelihood.gather(2, answers[:, :, None]).sum(dim=(1, 2))
        torch.testing.assert_close(scores[:, column], summed, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_masks_of_a_continuation_begin_where_attention_on_cuda_can_read_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, backbone = adapted(tiny_llava())
    attend, masks = F.scaled_dot_product_attention, []

    def watched(*states: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        if attn_mask is not None:
            masks.append(attn_mask)
        return attend(*states, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    backbone.generate(prompts(6), 3, stop=())
    assert any(mask.shape[-2] == 1 for mask in masks)  # of one token that is written
    assert all(mask.data_ptr() % 16 == 0 for mask in masks)


@torch.no_grad()
def test_the_route_does_not_depend_on_the_answer() -> None:
    method, backbone = adapted(tiny_llava())
    inputs = prompts(6)
    one, other = (
        method.routes(backbone, lambda ids=ids: backbone.answer_logits(inputs, torch.full((6, 3), ids)))[0]
        for ids in (7, 23)
    )
    assert torch.equal(one, other)


def test_a_skipped_first_layer_of_a_decoder_leaves_no_keys() -> None:
    method = RoE()
    method.decide(FixedRoute(("joint.0",)))
    backbone = tiny_llava()
    method.adapt(backbone, seeded())
    inputs = prompts(2)
    written = backbone.eval().generate(inputs, 4, stop=())
    alone = [backbone.generate(inputs.examples(row, row + 1), 4, stop=()) for row in range(2)]
    assert torch.equal(written, torch.cat(alone))


def test_the_loss_pushes_up_to_the_sparsity_and_not_beyond() -> None:
    method, backbone = adapted(tiny_vilt(), sparsity=0.3, weight=2.0)
    routing = method._routing
    part = TrainingPart(2, lambda: torch.tensor([0.0, 1.0]))
    routing.passes = [{0: torch.tensor([0.1, 0.9]), 1: torch.tensor([0.3, 0.7])}]
    found = method.weighted_regularizer(backbone, part)
    assert found is not None
    assert found.item() == pytest.approx(2 * (0.1 + 0) / 2)
    assert method.weighted_regularizer(backbone, part) is None  # of one pass only once
    easy, backbone = adapted(tiny_vilt(), easiness=5.0)
    easy._routing.passes = [{0: torch.tensor([0.1, 0.2])}, {0: torch.tensor([0.0, 0.2])}]  # two images
    found = easy.weighted_regularizer(backbone, part)
    assert found is not None
    assert found.item() == pytest.approx((0.25 + 0.1 * torch.tensor(-5.0).exp().item()) / 2)


def test_the_pressure_depends_on_the_loss_only_on_generative_backbones() -> None:
    assert adapted(tiny_llava())[0]._easiness == 5.0
    assert adapted(tiny_vilt())[0]._easiness == 0.0


def test_random_routes_of_the_first_stage_skip_the_share() -> None:
    routing = Routing(Phase("adapters", skip=0.3))
    torch.manual_seed(0)
    weights = routing.weigh(torch.zeros(20_000, 2))
    assert torch.equal(weights.sum(dim=1), torch.ones(20_000))
    assert weights[:, 1].mean().item() == pytest.approx(0.3, abs=0.01)


def gradients(method: RoE, backbone: Backbone, step: int) -> set[str]:
    backbone.train()
    backbone.zero_grad()
    method.before_step(step, 100)
    backbone(varied(backbone)).square().sum().backward()
    return {name for name, each in backbone.named_parameters() if each.grad is not None and each.grad.any()}


def test_each_stage_trains_its_own_parameters(backbone: Backbone) -> None:
    torch.manual_seed(0)
    method, backbone = adapted(backbone, tune="full")
    first, second, third = (gradients(method, backbone, step) for step in (0, 40, 80))
    common = {id(each) for each in backbone.common_parameters()}
    names = {name for name, each in backbone.named_parameters() if id(each) in common}
    assert {name.split(".")[-3] for name in first - names} == {"shortcut"}
    kinds = {"shortcut", "map", "tokens"}
    assert all(kinds & set(name.split(".")) for name in second - names)
    assert any(".router." in name for name in second)
    assert any(name.startswith("model.") and not kinds & set(name.split(".")) for name in third - names)


@pytest.mark.parametrize("step", [0, 40, 80])
def test_no_stage_asks_the_device_for_values(
    backbone: Backbone, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device nothing can be asked for its value, which on a GPU would wait for it."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # the meta device has no autocast
    inputs = varied(backbone).to(torch.device("meta"))
    method = RoE(RoEOptions(tune="full"))
    method.adapt(backbone, seeded())
    method.before_step(step, 100)
    backbone.train().to("meta")(inputs).sum().backward()


def test_full_tuning_has_a_lower_rate_for_the_pretrained_weights() -> None:
    method, backbone = adapted(tiny_llava(), tune="full")
    (group,) = method.parameter_groups(backbone)
    assert group.learning_rate_scale == 0.005  # 2e-6 / 4e-4
    frozen = [each for each in backbone.parameters() if not each.requires_grad]
    tower = list(backbone.components()["image encoder"][0].parameters())
    assert {id(each) for each in frozen} == {id(each) for each in tower}


def test_a_repeated_pass_does_not_count_twice() -> None:
    routing = Routing()
    routing.begin(training=True)
    routing.note_weights(0, torch.tensor([0.5]))
    assert len(routing.skipped()) == 1
    routing.note_weights(0, torch.tensor([0.5]))  # activation checkpointing runs the block again
    assert routing.skipped() == []


def test_meter_needs_the_other_stream(make_meter: Maker) -> None:
    _, backbone = adapted(make_meter())
    with pytest.raises(ValueError, match="needs a context"):
        backbone.blocks[0](BlockInput(Tokens(torch.randn(1, 3, 64))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.6}, "sparsity must be between 0 and 0.5"),
        ({"bottleneck": 0}, "bottleneck must be from 1 to 65,536"),
        ({"cooling": 0.0}, "cooling must be above 0"),
        ({"easiness": -1.0}, "easiness must be at least 0"),
        ({"adapter_stage": 0.6, "router_stage": 0.4}, "leave nothing of training"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RoEOptions(**options)
