"""Tuners of the peft library: sizes by closed form, what trains, exact merging, refusals. Needs the extra `peft`."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from harness import registry
from harness.backbones.base import Backbone
from harness.backbones.folding import fold
from harness.errors import UserError
from harness.measure.parameters import count_parameters
from harness.measure.profile import Case, Setting, count_case
from harness.registry import build_method, build_task
from harness.specs import parse_spec
from methods.peft_tuners import REFUSED, TUNERS, trained_parameters
from tests.support.paths import ROOT
from tests.support.small_vilt import mini

pytest.importorskip("peft")
from methods.peft_library import PeftMethod, settings_of
from methods.peft_page import bound, probe, static_cells

every_tuner = pytest.mark.parametrize("tuner", TUNERS)


def pooled(backbone: Backbone) -> Tensor:
    size = (64, 64) if len(backbone.stream_names) == 1 else (32, 32)
    return backbone(backbone.example_inputs(2, 5, size, torch.Generator().manual_seed(1)))


def maps_of(method: PeftMethod, backbone: Backbone) -> list[tuple[int, int]]:
    """Inputs and outputs of everything that the tuner shall change."""
    found = []
    for block in backbone.blocks:
        if not method.targets:
            norms = [module for module in block.modules() if isinstance(module, nn.LayerNorm)]
            found += [(len(norm.weight), len(norm.weight)) for norm in norms]
            continue
        for role, module in block.projections().items():
            if role.rsplit(".", 1)[-1] in method.targets:
                found.append((module.in_features, module.out_features))
    return found


def move(method: PeftMethod, backbone: Backbone) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.empty_like(parameter).normal_(std=0.05, generator=generator))


def check(method: PeftMethod, make: Callable[[], Backbone]) -> None:
    plain, backbone = make().eval(), make()
    maps = maps_of(method, plain)
    settings = {**settings_of(method.tuner), **method.resolve(method.find(plain))}
    kept = list(backbone.parameters())
    before = torch.random.get_rng_state()
    method.adapt(backbone, torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.random.get_rng_state())
    own = {id(p): p for p in method.method_parameters(backbone)}
    trained = {id(p) for p in backbone.parameters() if p.requires_grad}
    assert own.keys() == {id(p) for p in backbone.parameters()} - {id(p) for p in kept}
    assert trained <= own.keys()
    assert sum(own[key].numel() for key in trained) == trained_parameters(method.tuner, maps, settings)
    counts = count_parameters(backbone, nn.Identity(), method.method_modules(backbone))
    assert counts.method == sum(own[key].numel() for key in trained)
    with torch.no_grad():
        start = pooled(backbone.eval())
        moved = (start - pooled(plain)).abs().max()
        assert moved < 1e-5 if TUNERS[method.tuner].identity else moved > 0
        move(method, backbone)
    pooled(backbone.train()).square().sum().backward()
    assert [
        n for n, p in backbone.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ] == []
    with torch.no_grad():
        tuned = pooled(backbone.eval())
        assert (tuned - start).abs().max() > 1e-4
        twin = copy.deepcopy(backbone)
        assert torch.equal(pooled(twin), tuned)
        method.finalize(backbone)
        torch.testing.assert_close(pooled(backbone), tuned, atol=5e-5, rtol=0)
    fold(plain)
    assert backbone.state_dict().keys() == plain.state_dict().keys()
    assert method.method_modules(backbone) == []


@every_tuner
def test_tuner_has_its_size_trains_and_merges_on_vilt(tuner: str) -> None:
    check(PeftMethod(tuner), mini)


@every_tuner
def test_tuner_has_its_size_trains_and_merges_on_meter(
    tuner: str, make_meter: Callable[..., Backbone]
) -> None:
    small: dict[str, dict[str, int]] = {"oft": {"oft_block_size": 16}, "gralora": {"r": 8}}
    check(PeftMethod(tuner, small.get(tuner)), make_meter)


@pytest.mark.parametrize("tuner", [name for name, each in TUNERS.items() if len(each.targets) == 2])
def test_sizes_of_maps_that_are_not_square(tuner: str) -> None:
    method, backbone = PeftMethod(tuner, {"targets": "up+down"}), mini()
    maps = maps_of(method, backbone)
    settings = {**settings_of(tuner), **method.resolve(method.find(backbone))}
    method.adapt(backbone, torch.Generator().manual_seed(0))
    trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert trained == trained_parameters(tuner, maps, settings)


def test_known_sizes_by_hand() -> None:
    """24 square maps of width 128 at the library's defaults."""
    for tuner, per_map in {
        "lora": 8 * 256,
        "dora": 8 * 256 + 128,
        "vera": 256 + 128,
        "oft": 128 * 31 // 2,
    }.items():
        method, backbone = PeftMethod(tuner), mini()
        method.adapt(backbone, torch.Generator().manual_seed(0))
        assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == 24 * per_map


def test_random_matrices_in_buffers_count_as_frozen_method_parameters() -> None:
    method, backbone = PeftMethod("vera"), mini()
    method.adapt(backbone, torch.Generator().manual_seed(0))
    counts = count_parameters(backbone, nn.Identity(), method.method_modules(backbone))
    assert counts.method_frozen == 256 * 128 * 2
    method.finalize(backbone)
    assert count_parameters(backbone, nn.Identity(), method.method_modules(backbone)).method_frozen == 0


@pytest.mark.parametrize("tuner", ["dora", "pissa", "vera", "ln_tuning"])
def test_full_size_needs_no_memory(tuner: str) -> None:
    task = build_task(parse_spec("vqa"))
    task.without_data()
    row = count_case(Setting("vilt", task, (384, 640), 40), Case(tuner, parse_spec(f"peft:{tuner}")))
    maps = [(768, 768)] * 24  # query and value, or two norms, of 12 blocks
    settings = {**settings_of(tuner), **TUNERS[tuner].fixed}
    assert row.trained.method == trained_parameters(tuner, maps, settings)
    assert row.compute.macs["method"] == 0
    assert row.compute.macs_total == 25_894_854_144


def test_a_tuner_that_needs_weights_says_so() -> None:
    task = build_task(parse_spec("vqa"))
    task.without_data()
    with pytest.raises(UserError, match="peft:shira: the peft library cannot make it without weights"):
        count_case(Setting("vilt", task, (384, 640), 40), Case("shira", parse_spec("peft:shira")))


def test_lists_agree() -> None:
    assert [name.removeprefix("peft:") for name in registry.PEFT_LIBRARY] == list(TUNERS)
    assert not set(TUNERS) & set(REFUSED)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("peft:lily", "peft:lily does not work here: it cannot be merged into the projections."),
        ("peft:poly", "peft:poly does not work here: it needs to know the task of every example."),
        ("peft:osf", "peft:osf does not work here: it trains whole matrices"),
        ("peft:adalora", "peft:adalora does not work here: its ranks follow from the gradients of all steps"),
        ("peft:dorra", "there is no method 'peft:dorra'. Did you mean 'dora'?"),
        ("peft:boft[boft_n_butterfly_factor=2]", "peft:boft: boft_n_butterfly_factor must be 1"),
        ("peft:dora[rr=2]", "peft:dora: no option 'rr'. Did you mean 'r'?"),
        ("peft:dora[use_dora=false]", "peft:dora: no option 'use_dora'."),
        ("peft:dora[target_modules=x]", "peft:dora: no option 'target_modules'."),
        ("peft:dora[r=many]", "peft:dora: r must be of type int, not 'many'."),
        ("peft:lora[init_lora_weights=eva]", "init_lora_weights must be one of true, gaussian"),
        ("peft:ln_tuning[targets=query]", "peft:ln_tuning: it has no targets; it trains LayerNorms."),
        ("vera", "is not VeRA; use peft:vera."),
    ],
)
def test_what_does_not_work_is_refused_with_the_reason(spec: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        build_method(parse_spec(spec))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("peft:lora[r=100000000]", "r must be from 1 to 65,536"),
        ("peft:lokr[decompose_factor=0]", "decompose_factor must be from 1 to 16,777,216, got 0"),
        ("peft:lora[lora_dropout=1.5]", "lora_dropout must be at least 0 and below 1"),
        ("peft:shira[random_seed=-1]", "random_seed must be at least 0, got -1"),
        ("peft:shira[random_seed=x]", "random_seed must be of type int, not 'x'"),
        ("peft:vera[d_initial=-1.0]", "d_initial must be above 0, got -1.0"),
    ],
)
def test_numbers_that_the_library_takes_as_they_are_have_a_range(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        build_method(parse_spec(spec))


def test_targets_and_settings_that_do_not_fit_are_refused_on_the_backbone() -> None:
    with pytest.raises(
        UserError, match=r"peft:lora: targets: vilt-mini has no projection 'querry'. Did you mean"
    ):
        PeftMethod("lora", {"targets": "querry"}).adapt(mini(), torch.Generator())
    with pytest.raises(UserError, match="peft:c3a: the peft library refuses these settings"):
        PeftMethod("c3a", {"block_size": 77}).adapt(mini(), torch.Generator())


def test_options_come_back_from_the_record() -> None:
    method = build_method(parse_spec("peft:dora[r=4,targets=query]"))
    assert method.config()["r"] == 4
    assert method.config()["targets"] == ["query"]
    assert method.config()["use_dora"] is True
    twin = copy.deepcopy(method)
    assert twin.config() == method.config()


def test_peft_combines_with_methods_that_fill_other_slots() -> None:
    combined, backbone = build_method(parse_spec("peft:dora+tome")), mini()
    combined.adapt(backbone, torch.Generator().manual_seed(0))
    move(combined, backbone)  # type: ignore[arg-type]
    with torch.no_grad():
        tuned = pooled(backbone.eval())
        combined.finalize(backbone)
        torch.testing.assert_close(pooled(backbone), tuned, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="lora and peft:dora cannot be combined: both fill the projections"):
        build_method(parse_spec("lora+peft:dora"))


def test_the_page_lists_every_tuner_with_its_size() -> None:
    page = (ROOT / "docs" / "peft.md").read_text(encoding="utf-8")
    rows = [
        tuple(line.strip("| \n").split(" | ")) for line in page.splitlines() if line.startswith("| `peft:")
    ]
    assert [row[:4] for row in rows if len(row) > 2] == [static_cells(tuner) for tuner in TUNERS], (
        "write it again: python -m methods.peft_page > docs/peft.md"
    )
    assert [row[0] for row in rows if len(row) == 2] == [f"`peft:{tuner}`" for tuner in REFUSED]


def test_a_probe_sees_start_and_merge() -> None:
    seen = probe("vera", mini(), mini())
    assert (seen.start, seen.trained, seen.frozen) == (0.0, 24 * 384, 2 * 256 * 128)
    assert seen.expected == seen.trained
    assert seen.merge < 1e-5
    assert [bound(each) for each in (0.0, 3e-6, 0.5)] == ["0", "1e-5", "1e0"]
