"""DAS and EAS on LLaVA: published sizes, published formulas, exact folding, decoding, and the published searches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.backbones.base import BackboneOptions
from harness.backbones.block import BlockInput, Causal, Tokens
from harness.backbones.llava.block import FoldedLlavaBlock
from harness.backbones.llava.loading import load_llava
from harness.errors import UserError
from methods.base import Method
from methods.das import DAS, DASOptions
from methods.decoder_adapters import ExpertAdapter, SequentialBottleneck
from methods.decoder_blocks import FoldedLlavaSkip, summarise
from methods.decoder_search import RECIPES, RecipeBandit, ramped, recipe_of, scaled
from methods.eas import EAS, EASOptions
from methods.eas_adapters import InputAdapter, SkipAdapter
from tests.support.folding import tiny_vilt
from tests.support.tiny_llava import prompts, tiny_llava

FORMS = ("own", "llava", "lavin")
D = 4096


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def count(module: torch.nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def adapted(method: Method[Any]) -> Any:
    backbone = tiny_llava()
    method.adapt(backbone, seeded())
    with torch.no_grad():
        for parameter in method.method_parameters(backbone):
            parameter.normal_(std=0.1, generator=seeded(1))
    return backbone.eval()


def das(form: str, **options: Any) -> DAS:
    return DAS(DASOptions(blocks=("0", "2"), form=form, **options))  # type: ignore[arg-type]


def eas(form: str, **options: Any) -> EAS:
    return EAS(EASOptions(modules=("0", "2"), form=form, dropout=0.0, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"bottleneck": 8}, 81_930),  # LaVIN, kept
        ({"bottleneck": 32, "context": True}, 409_666),  # LaVIN-EAS, skipped
        ({"bottleneck": 32, "residual": False}, 278_562),  # LaVIN-DAS, skipped
        ({"bottleneck": 128, "router_bias": False}, 1_065_088),  # LLaVA-EAS, kept
        ({"bottleneck": 256, "context": True}, 3_162_626),  # LLaVA-EAS, skipped
        ({"bottleneck": 128, "context": True}, 1_589_506),  # the same in the AID and SLAKE scripts
        ({"width": 1024, "bottleneck": 8}, 20_490),  # LaVIN, in CLIP
    ],
)
def test_adapters_with_experts_have_the_published_sizes(options: dict[str, Any], expected: int) -> None:
    given = {"width": D, "dropout": 0.1, "generator": seeded(), **options}
    with torch.device("meta"):
        assert count(ExpertAdapter(**given)) == expected


def test_sequential_adapters_have_the_published_sizes() -> None:
    assert 2 * count(SequentialBottleneck(D, 64, seeded())) == 1_056_896
    assert count(SequentialBottleneck(D, 256, seeded())) == 2_101_504


@pytest.mark.parametrize(
    ("method", "kept", "skipped"),
    [
        (das("llava"), 1_056_896, 2_101_504),
        (das("lavin"), 81_930, 278_562),
        (eas("llava"), 1_065_088, 3_162_626),
        (eas("lavin"), 81_930, 409_666),
    ],
    ids=["llava-das", "lavin-das", "llava-eas", "lavin-eas"],
)
def test_llava_7b_has_the_published_parameters(method: Method[Any], kept: int, skipped: int) -> None:
    with torch.device("meta"):
        backbone = load_llava(BackboneOptions(weights="random"))
        before = count(backbone)
        method.adapt(backbone, seeded())
    own = sum(each.numel() for each in method.method_parameters(backbone))
    assert own == 30 * kept + 2 * skipped
    layer = 202_383_360 if isinstance(method, DAS) else 4 * D * D
    left = 8_192 - 4_096 if isinstance(method, DAS) else 0  # a skipped layer keeps its first norm
    assert before - (count(backbone) - own) == 2 * (layer - (4_096 if left else 0))


@torch.no_grad()
def test_experts_are_mixed_by_the_example() -> None:
    adapter = ExpertAdapter(6, 4, 0.0, seeded(), context=True)
    for parameter in adapter.parameters():
        parameter.normal_(generator=seeded())
    x, s = torch.randn(2, 3, 6), torch.randn(2, 1, 6)
    assert adapter.context is not None
    inner = 0.5 * (adapter.down(x) + adapter.context(s))
    weights = (adapter.router(s) / 10).softmax(dim=-1)
    expected = x + sum(weights[..., k : k + 1] * up(inner) for k, up in enumerate(adapter.ups))
    torch.testing.assert_close(adapter(x, s), expected)
    up: Any = adapter.ups[0]
    grouped = torch.nn.Conv1d(4, 6, 1, groups=2)
    grouped.weight.copy_(up.weight[..., None])
    grouped.bias.copy_(up.bias)  # type: ignore[union-attr]
    torch.testing.assert_close(up(inner), grouped(inner.transpose(1, 2)).transpose(1, 2))


def whole(hidden: Tensor, prompt: int | None = None) -> BlockInput:
    rows, count, _ = hidden.shape
    angles = torch.zeros(rows, 1, count, 16)
    return BlockInput(Tokens(hidden), causal=Causal(angles + 1, angles, prompt=prompt))


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_a_skipped_attention_follows_the_published_formula(form: str) -> None:
    """x + MLP(g2 · PIA(norm1 x)), where the second norm's division is left out."""
    block = adapted(eas(form)).blocks[0]
    hidden = torch.randn(2, 5, 64)
    normed = block.input_layernorm(hidden)
    mean = normed.mean(dim=1, keepdim=True)
    skip = block.skips["attention"]
    mixed = normed + skip.with_mean(normed, mean) if form == "own" else skip(normed, mean)
    expected = hidden + block.mlp(mixed * block.post_attention_layernorm.weight)
    torch.testing.assert_close(block(whole(hidden)).tokens.hidden, expected)
    assert not hasattr(block, "self_attn")


@torch.no_grad()
@pytest.mark.parametrize("form", ["llava", "lavin"])
def test_a_skipped_layer_follows_the_published_formula(form: str) -> None:
    block = adapted(das(form)).blocks[0]
    hidden = torch.randn(2, 5, 64)
    normed = block.input_layernorm(hidden)
    adapter = block.skips["attention"]
    if form == "llava":  # the adapter's own residual adds the norm's result
        expected = hidden + normed + adapter.up(F.relu(adapter.down(normed)))
    else:
        first = normed[:, :1]
        weights = (adapter.router(first) / 10).softmax(dim=-1)
        inner = adapter.down(normed)
        expected = hidden + sum(weights[..., k : k + 1] * up(inner) for k, up in enumerate(adapter.ups))
    torch.testing.assert_close(block(whole(hidden)).tokens.hidden, expected)
    assert not hasattr(block, "mlp")


@torch.no_grad()
@pytest.mark.parametrize("method", [eas("own"), eas("llava"), eas("lavin"), das("llava"), das("lavin")])
def test_decoding_and_deployment_keep_the_outputs(method: Method[Any]) -> None:
    backbone, inputs = adapted(method), prompts(4)
    before, written = backbone(inputs), backbone.generate(inputs, 4, stop=())
    alone = torch.cat([backbone(inputs.examples(row, row + 1)) for row in range(4)])
    torch.testing.assert_close(alone, before, atol=1e-5, rtol=1e-5)
    again = torch.empty(4, 0, dtype=torch.long)
    for _ in range(4):  # without a cache
        following = torch.cat([again, torch.zeros(4, 1, dtype=torch.long)], dim=1)
        token = backbone.answer_logits(inputs, following)[:, -1].argmax(dim=-1)
        again = torch.cat([again, token[:, None]], dim=1)
    assert torch.equal(written, again)
    method.finalize(backbone)
    torch.testing.assert_close(backbone(inputs), before, atol=1e-5, rtol=1e-5)
    assert torch.equal(backbone.generate(inputs, 4, stop=()), written)


@torch.no_grad()
def test_nothing_of_the_own_form_is_left_beside_the_deployed_layers() -> None:
    """The authors' fold is off by up to 3e-2: it takes the bias through the already folded matrix."""
    method = eas("own")
    backbone, inputs = adapted(method), prompts(3)
    before = backbone(inputs)
    method.finalize(backbone)
    assert [type(block) for block in backbone.blocks] == [FoldedLlavaSkip, FoldedLlavaBlock] * 2
    left = (InputAdapter, SkipAdapter)
    assert not any(isinstance(module, left) for module in backbone.modules())
    assert (backbone(inputs) - before).abs().max() < 1e-5  # LLaMA's norms compute in float32
    assert (backbone(inputs) - tiny_llava()(inputs)).abs().max() > 0.1


@torch.no_grad()
def test_the_mean_leaves_out_padding_and_the_answer() -> None:
    normed = torch.randn(2, 6, 4)
    mask = torch.zeros(2, 1, 6, 6)
    mask[1, ..., :2] = torch.finfo(torch.float32).min
    angles = torch.zeros(2, 1, 6, 2)
    inputs = BlockInput(Tokens(normed, mask), causal=Causal(angles, angles, prompt=4))
    found = summarise("joint.0", "prompt", normed, inputs)
    torch.testing.assert_close(found[0, 0], normed[0, :4].mean(dim=0))
    torch.testing.assert_close(found[1, 0], normed[1, 2:4].mean(dim=0))
    torch.testing.assert_close(summarise("", "all", normed, inputs)[1, 0], normed[1, 2:].mean(dim=0))
    torch.testing.assert_close(summarise("", "first", normed, inputs)[1, 0], normed[1, 2])


def test_the_answer_enters_the_mean_only_where_it_was_published() -> None:
    inputs = prompts(2)
    for summary, leaks in (("prompt", False), ("all", True)):
        backbone = adapted(eas("lavin", summary=summary)).train()
        first, second = (
            backbone.answer_logits(inputs, torch.tensor([[7, 8, last], [7, 8, last]]))[:, 0]
            for last in (9, 9)
        )
        assert torch.equal(first, second)
        other = backbone.answer_logits(inputs, torch.tensor([[7, 30, 9], [7, 30, 9]]))[:, 0]
        assert torch.equal(first, other) is not leaks


class Trainer:
    """Trains nothing; the loss of a set is the number of the layers in it that matter."""

    def __init__(self, important: set[int], steps: int = 30) -> None:
        self.backbone = tiny_llava()
        self.generator = seeded()
        self.steps_per_epoch = steps
        self.important = important
        self.skipped: list[set[int]] = []
        self.batches: list[str] = []

    def now(self) -> set[int]:
        return {i for i, block in enumerate(self.backbone.blocks) if block.skipped}  # type: ignore[misc]

    def train(self, epochs: int, before_step: Any, after_step: Any, memory: Any = None) -> None:
        for epoch in range(epochs):
            for step in range(self.steps_per_epoch):
                before_step(epoch, step)
                self.skipped.append(self.now())
                after_step(epoch, step)

    def held_out_batch(self, fresh: bool = True) -> str:
        return "held out"

    def training_batch(self) -> str:
        return "training"

    def loss(self, batch: str, training_mode: bool = False) -> float:
        self.batches.append(f"{batch}, {training_mode}")
        return float(len(self.now() & self.important))


@pytest.mark.parametrize(
    ("method", "rewards"),
    [
        (DAS(DASOptions(form="llava", skip=2, search_epochs=8)), "training, True"),
        (DAS(DASOptions(form="lavin", skip=2, search_epochs=8)), "held out, False"),
        (EAS(EASOptions(form="llava", skip=2, search_epochs=4)), "training, False"),
        (EAS(EASOptions(form="lavin", skip=2, search_epochs=4)), "held out, True"),
    ],
    ids=["llava-das", "lavin-das", "llava-eas", "lavin-eas"],
)
def test_published_searches_find_what_is_not_needed(method: Any, rewards: str) -> None:
    trainer = Trainer({1, 3})
    decision = method.search(trainer)
    assert [name.split(".")[1] for name in decision.skipped] == ["0", "2"]
    assert set(trainer.batches) == {rewards}
    assert (method.search_holdout > 0) == rewards.startswith("held out")
    ramps = "llava" in method.options.form
    assert [len(each) for each in trainer.skipped[:16:15]] == ([1, 2] if ramps else [2, 2])
    method.decide(decision)
    backbone = tiny_llava()
    method.adapt(backbone, seeded())
    assert {i for i, block in enumerate(backbone.blocks) if block.skipped} == {0, 2}  # type: ignore[misc]
    assert method.warm_start(backbone, {}) == {}


def test_a_step_of_the_gates_is_the_published_one() -> None:
    for key, recipe in RECIPES.items():
        bandit = RecipeBandit(4, 2, seeded(), recipe)
        p = 0.25 if key == ("eas", "lavin") else 0.5
        bandit.update([(0, 1), (2, 3)], [0.6, 0.2])
        assert bandit.gates[0].item() == pytest.approx(recipe.step * 0.2 * p * (1 - p)), key
    assert [recipe.step for recipe in RECIPES.values()] == [0.1, 0.05, 1.0, 2.0]


def test_the_number_of_skipped_layers_ramps_up_over_half_the_warm_up() -> None:
    recipe = RECIPES["eas", "llava"]
    assert [ramped(recipe, 12, step, 100) for step in (0, 4, 5, 25, 45, 46, 90)] == [1, 1, 2, 7, 11, 12, 12]
    assert ramped(RECIPES["eas", "lavin"], 12, 0, 100) == 12


def test_weaknesses_of_the_rewards_are_options() -> None:
    options = EASOptions(form="llava", reward_on="held_out", reward_dropout=True, gate_step=0.5, period=7)
    recipe = recipe_of("eas", options)
    found = (recipe.reward_on, recipe.reward_dropout, recipe.step, recipe.period)
    assert found == ("held_out", True, 0.5, 7)
    assert EAS(options).search_holdout == 0.2


def test_bottlenecks_shrink_with_the_width() -> None:
    assert [scaled(size, 4096) for size in (8, 32, 64, 256)] == [8, 32, 64, 256]
    assert [scaled(size, 128) for size in (8, 64, 256)] == [2, 2, 8]


@pytest.mark.parametrize("method", [das("llava"), eas("lavin")])
def test_published_forms_of_decoders_are_refused_elsewhere(method: Method[Any]) -> None:
    with pytest.raises(UserError, match="is for LLaVA; leave it out"):
        method.adapt(tiny_vilt(), seeded())
