"""EAS: published formulas, sizes and MACs, exact folding, and the search over attentions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.block import BlockInput, Tokens
from harness.backbones.meter.folded import FoldedMeterBlock
from harness.backbones.meter.model import MeterBackbone
from harness.backbones.vilt.folded import FoldedViltBlock
from harness.backbones.vilt.loading import full_size_config
from harness.errors import UserError
from harness.measure.flops import count_forward
from harness.measure.parameters import count_parameters
from methods.das_decision import DASDecision
from methods.eas import EAS, EASOptions, attention_names, resolve_modules
from methods.eas_adapters import InputAdapter, SkipAdapter, token_mean
from methods.eas_vilt import FoldedSkippedAttention
from tests.support.folding import randomize, streams_of, tiny_vilt, tokens_after
from tests.support.measured_models import build, classifier

Maker = Callable[..., MeterBackbone]
D, TEXT, IMAGE = 768, 40, 577
SOME = ("text-self.1", "image-cross.0", "image-self.1")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def adapted(backbone: Backbone, *modules: str, **options: Any) -> tuple[EAS, Backbone]:
    method = EAS(EASOptions(modules=modules, dropout=0.0, **options))
    method.adapt(backbone, seeded())
    randomize(backbone)
    return method, backbone.eval()


def test_adapters_have_the_live_parameters_of_the_published_ones() -> None:
    kept, skip = InputAdapter(D, 96, 0.1, seeded()), SkipAdapter(D, 144, 0.1, seeded())
    assert sum(p.numel() for p in kept.parameters()) == 111_456
    assert sum(p.numel() for p in skip.parameters()) == 277_536


@torch.no_grad()
def test_adapters_compute_what_is_published() -> None:
    """Grouped upper projection: outputs of each half read one half of the hidden units."""
    kept, skip = InputAdapter(6, 4, 0.0, seeded()), SkipAdapter(6, 4, 0.0, seeded())
    for parameter in [*kept.parameters(), *skip.parameters()]:
        parameter.normal_(generator=seeded())
    x, y = torch.randn(2, 3, 6), torch.randn(2, 5, 6)

    def up(module: Any, hidden: Tensor) -> Tensor:
        conv = nn.Conv1d(4, 6, 1, groups=2)
        conv.weight.copy_(module.weight[..., None])
        conv.bias.copy_(module.bias)  # type: ignore[union-attr]
        return conv(hidden.transpose(1, 2)).transpose(1, 2)

    torch.testing.assert_close(kept(x), x + up(kept.up, kept.down(x)))
    each = skip.context(y)
    each[1, 3:] = 0  # two padded tokens
    mean = each.sum(dim=1, keepdim=True) / torch.tensor([5.0, 3.0])[:, None, None]
    mask = torch.zeros(2, 1, 1, 5)
    mask[1, ..., 3:] = torch.finfo(torch.float32).min
    torch.testing.assert_close(skip(x, y, mask), up(skip.up, 0.5 * (skip.down(x) + mean)))
    torch.testing.assert_close(token_mean(y, None)[:, 0], y.mean(dim=1))


@torch.no_grad()
def test_fresh_adapters_change_nothing_that_is_kept(make_meter: Maker) -> None:
    inputs = make_meter().example_inputs(2, 5, (32, 32), seeded())
    plain, backbone = make_meter().eval(), make_meter()
    EAS(EASOptions(modules=("text-self.0",))).adapt(backbone, seeded())
    first, second = (
        plain.run_blocks(plain.encode(inputs)),
        backbone.eval().run_blocks(backbone.encode(inputs)),
    )
    assert not torch.allclose(first["text"].hidden, second["text"].hidden)  # its attention is gone
    block, old = backbone.blocks[1], plain.blocks[1]
    given = BlockInput(Tokens(torch.randn(2, 5, 64)), Tokens(torch.randn(2, 7, 64)))
    assert torch.equal(block(given).tokens.hidden, old(given).tokens.hidden)


@torch.no_grad()
def test_skipped_attentions_of_meter_follow_the_published_formula(make_meter: Maker) -> None:
    plain = make_meter()
    _, backbone = adapted(make_meter(), "text-self.0", "text-cross.0")
    block: Any = backbone.blocks[0]
    hidden, context = torch.randn(2, 5, 64), torch.randn(2, 7, 64)
    first = block.attention.output.LayerNorm(hidden + block.skips["self_attention"](hidden, hidden, None))
    across = block.skips["cross_attention"](hidden, context, None)  # of the layer's input
    second = block.crossattention.output.LayerNorm(first + across)
    fed = block.output.LayerNorm(block.output.dense(block.intermediate(block.kept["mlp"](second))) + second)
    found = block(BlockInput(Tokens(hidden), Tokens(context))).tokens.hidden
    torch.testing.assert_close(found, fed)
    assert sum(p.numel() for p in plain.blocks[0].attention.output.LayerNorm.parameters()) == 128
    assert set(block.projections()) == {"mlp.up", "mlp.down"}


@torch.no_grad()
@pytest.mark.parametrize("padded", [None, "text", "image"])
@pytest.mark.parametrize("queries", [None, 1])
def test_folding_is_exact(make_meter: Maker, padded: str | None, queries: int | None) -> None:
    for backbone, modules in ((make_meter(), SOME), (tiny_vilt(), ("0", "2"))):
        method, adapted_one = adapted(backbone, *modules)
        backbone.double()
        streams = {
            name: type(stream)(stream.hidden.double(), stream.mask, stream.token_type, stream.text_length)
            for name, stream in streams_of(adapted_one, 3, padded).items()
        }
        before = tokens_after(adapted_one, streams, queries)
        method.finalize(adapted_one)
        assert not any(isinstance(module, InputAdapter) for module in adapted_one.modules())
        after = tokens_after(adapted_one, streams, queries)
        for name, expected in before.items():
            first = expected[:, : queries or 3]  # tokens behind may be padding
            torch.testing.assert_close(after[name][:, : first.shape[1]], first, atol=1e-10, rtol=1e-10)


def test_deployed_blocks_have_no_projections_of_skipped_attentions(make_meter: Maker) -> None:
    method, backbone = adapted(make_meter(), *SOME)
    method.finalize(backbone)
    kinds = [type(block).__name__ for block in backbone.blocks]
    assert kinds == ["FoldedMeterBlock", "EasMeterBlock", "EasMeterBlock", "EasMeterBlock"]
    assert isinstance(backbone.blocks[0], FoldedMeterBlock)
    method, backbone = adapted(tiny_vilt(), "1")
    method.finalize(backbone)
    kept = [isinstance(block, FoldedViltBlock) for block in backbone.blocks]
    assert kept == [True, False, True]
    assert isinstance(backbone.blocks[1], FoldedSkippedAttention)


class OnePass:
    images_per_example = 1

    def forward(self, backbone: Backbone, head: nn.Module, batch: Any) -> Tensor:
        logits: Tensor = head(backbone(batch.inputs[0]))
        return logits


@pytest.mark.parametrize(
    ("skip", "live", "deployed"), [(8, 5_341_056, 2_220_288), (10, 5_673_216, 2_775_360)]
)
def test_parameters_and_macs_on_meter(full_size_meter: Maker, skip: int, live: int, deployed: int) -> None:
    """Attentions skipped: of text self 3, text cross 2, image self 1, and the rest image cross."""
    number = {"text-self": 3, "text-cross": 2, "image-self": 1, "image-cross": skip - 6}
    modules = tuple(f"{kind}.{i}" for kind, count in number.items() for i in range(count))
    head = classifier(1536, 1536, 3129).to("meta")
    backbone = full_size_meter()
    method = EAS(EASOptions(modules=modules))
    method.adapt(backbone, seeded())
    backbone.to("meta")
    assert sum(p.numel() for p in method.method_parameters(backbone)) == live + D  # and the token
    method.finalize(backbone)
    counts = count_parameters(backbone, head, method.method_modules(backbone))
    assert counts.method + counts.method_frozen == deployed + D
    found = count_forward(OnePass(), backbone, head, method, image_size=(384, 384), text_length=TEXT)

    def attention(own: int, other: int) -> int:
        return 2 * D**2 * (own + other) + 2 * D * own * other

    saved = {
        "text-self": attention(TEXT, TEXT),
        "text-cross": attention(TEXT, IMAGE),
        "image-self": attention(IMAGE, IMAGE),
        "image-cross": attention(IMAGE, TEXT),
    }
    assert [round(macs / 1e9, 4) for macs in saved.values()] == [0.0968, 0.7633, 1.8727, 0.7633]
    added = {"text": D * 144 * (TEXT * 3 // 2 + 1), "image": D * 144 * (IMAGE * 3 + 2) // 2}
    change = sum(count * (added[kind.split("-")[0]] - saved[kind]) for kind, count in number.items())
    assert found.macs_total == 93_132_291_072 + change


@pytest.mark.parametrize("skip", [1, 4])
def test_parameters_and_macs_on_vilt(skip: int) -> None:
    with torch.device("meta"):
        backbone = build(full_size_config())
    head = classifier(768, 1536, 3129).to("meta")
    method = EAS(EASOptions(modules=tuple(str(i) for i in range(skip))))
    method.adapt(backbone, seeded())
    backbone.to("meta")
    expected = 2 * 111_456 * (12 - skip) + 277_536 * skip
    assert sum(p.numel() for p in method.method_parameters(backbone)) == expected
    method.finalize(backbone)
    found = count_forward(OnePass(), backbone, head, method, image_size=(384, 640), text_length=TEXT)
    attention = 4 * D**2 * 281 + 2 * D * 281**2
    assert round(attention / 1e9, 3) == 0.784
    assert found.macs_total == 25_894_854_144 - skip * (attention - 552_960)


def test_names_and_gates_are_in_the_published_order(make_meter: Maker) -> None:
    names = attention_names(make_meter())
    assert names == tuple(
        f"{kind}.{i}" for kind in ("text-self", "text-cross", "image-self", "image-cross") for i in (0, 1)
    )
    assert resolve_modules(("1", "joint-attention.2"), tiny_vilt()) == (
        "joint-attention.1",
        "joint-attention.2",
    )


def test_published_order_skips_image_self_attention_twice(make_meter: Maker) -> None:
    chosen = DASDecision(("image-self.0", "image-cross.0", "image-cross.1"))
    removed = {}
    for order in ("fixed", "published"):
        method = EAS(EASOptions(skip=3, order=order))  # type: ignore[arg-type]
        method.decide(chosen)
        backbone = make_meter()
        method.adapt(backbone, seeded())
        removed[order] = [sorted(block.skipped) for block in list(backbone.blocks)[2:]]
    assert removed["fixed"] == [["cross_attention", "self_attention"], ["cross_attention"]]
    assert removed["published"] == [["self_attention"], ["self_attention"]]


class Trainer:
    """Losses grow with every skipped module but two."""

    steps_per_epoch = 60

    def __init__(self, backbone: Backbone, harmless: set[str]) -> None:
        self.backbone = backbone
        self.generator = seeded()
        self.harmless = harmless

    def _skipped(self) -> set[tuple[str, str]]:
        return {(block.name, each) for block in self.backbone.blocks for each in block.skipped}  # type: ignore

    def train(self, epochs: int, before_step: Any, after_step: Any, memory: Any = None) -> None:
        for epoch in range(epochs):
            for step in range(self.steps_per_epoch):
                before_step(epoch, step)
                assert len(self._skipped()) == 2
                after_step(epoch, step)

    def held_out_batch(self, fresh: bool = True) -> None:
        pass

    def loss(self, batch: None, training_mode: bool = False) -> float:
        return 1.0 + sum(f"{block} {each}" not in self.harmless for block, each in self._skipped())


def test_search_finds_the_harmless_attentions(make_meter: Maker) -> None:
    trainer: Any = Trainer(make_meter(), {"text.1 self_attention", "image.0 cross_attention"})
    decision = EAS(EASOptions(skip=2, search_epochs=8)).search(trainer)
    assert set(decision.skipped) == {"text-self.1", "image-cross.0"}
    assert len(decision.gates) == 8


class Untrained:
    steps_per_epoch = 1

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.generator = seeded()

    def train(self, *_: Any) -> None:
        pass


@torch.no_grad()
def test_training_starts_with_the_outputs_of_the_searched_model(make_meter: Maker) -> None:
    vilt = tiny_vilt()
    for make, chosen in ((make_meter, SOME), (partial(copy.deepcopy, vilt), ("joint-attention.0",))):
        method = EAS(EASOptions(skip=len(chosen), dropout=0.0))
        supernet: Any = make()
        method.search(Untrained(supernet))  # type: ignore[arg-type]
        for module in method.method_modules(supernet):
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        method._skip_only(
            supernet, attention_names(supernet), [attention_names(supernet).index(name) for name in chosen]
        )
        searched = {f"backbone.{n}": p for n, p in supernet.named_parameters() if p.requires_grad}
        backbone: Any = make()
        method.decide(DASDecision(chosen))
        method.adapt(backbone, torch.Generator().manual_seed(5))
        start = method.warm_start(backbone, {**searched, "head.weight": torch.ones(1)})
        trained = {f"backbone.{n}": p for n, p in backbone.named_parameters() if p.requires_grad}
        assert start.keys() == {*trained, "head.weight"}
        for name, parameter in trained.items():
            parameter.copy_(start[name])
        streams = streams_of(backbone, 2)
        expected = tokens_after(supernet.eval(), streams)
        for name, hidden in tokens_after(backbone.eval(), streams).items():
            torch.testing.assert_close(hidden, expected[name])


def test_wrong_options_are_named(make_meter: Maker) -> None:
    with pytest.raises(UserError, match="eas: bottleneck must be an even number"):
        EASOptions(bottleneck=3)
    with pytest.raises(UserError, match=r"eas: .* search_epochs must be more"):
        EASOptions(search_epochs=1, warmup_epochs=1)
    with pytest.raises(UserError, match=r"no attention 'text-self\.9'"):
        resolve_modules(("text-self.9",), make_meter())
    with pytest.raises(UserError, match="skip must be from 1 to 7, as meter has 8 attention modules; got 8"):
        EAS(EASOptions(skip=8)).search(Untrained(make_meter()))  # type: ignore[arg-type]
