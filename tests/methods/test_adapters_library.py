from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from harness.backbones.base import BackboneOptions
from harness.backbones.folding import fold
from harness.backbones.vilt.folded import FoldedViltBlock
from harness.backbones.vilt.loading import load_vilt_mini
from harness.backbones.vilt.model import ViltBackbone
from harness.errors import UserError
from harness.registry import build_method
from harness.specs import Spec
from methods.adapters_library import AdaptersMethod

D, LAYERS, INNER = 128, 12, 512
"""Width, blocks and feed-forward size of the small backbone."""


def bottleneck(size: int) -> int:
    return 2 * D * size + D + size


def compacter(size: int) -> int:
    return 4 * (2 * D // 4 + 2 * size // 4) + D + size  # four rank-one factors and biases, both ways


WORKING = {
    "seq_bn": LAYERS * bottleneck(D // 16),
    "double_seq_bn": 2 * LAYERS * bottleneck(D // 16),
    "par_bn": LAYERS * bottleneck(D // 2),
    "scaled_par_bn": LAYERS * (bottleneck(D // 2) + 1),
    "compacter++": LAYERS * compacter(D // 32) + 4**3,
    "compacter": 2 * LAYERS * compacter(D // 32) + 4**3,
    "lora": LAYERS * 2 * 8 * 2 * D,
    "dora": LAYERS * 2 * (8 * 2 * D + D),
    "ia3": LAYERS * (2 * D + INNER),
}
"""Parameters by configuration."""


def mini() -> ViltBackbone:
    backbone = load_vilt_mini(BackboneOptions(weights="random"))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in backbone.named_parameters():
        if name.endswith("bias"):  # an untrained model's are all 0
            nn.init.normal_(parameter, std=0.2, generator=generator)
    return backbone


def pooled(backbone: ViltBackbone) -> torch.Tensor:
    return backbone(backbone.example_inputs(2, 5, (64, 64), torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", WORKING)
def test_configurations_have_their_closed_form_size_train_and_finalize(name: str) -> None:
    method, backbone = AdaptersMethod(name), mini()
    pretrained = {id(p) for p in backbone.parameters()}
    method.adapt(backbone, torch.Generator().manual_seed(0))
    own = {id(p): p for p in method.method_parameters(backbone)}
    assert sum(p.numel() for p in own.values()) == WORKING[name]
    assert own.keys() == {id(p) for p in backbone.parameters()} - pretrained
    assert {id(p) for p in backbone.parameters() if p.requires_grad} <= own.keys()
    with torch.no_grad():
        difference = (pooled(backbone.eval()) - pooled(mini())).abs().max()
        assert difference < (0.1 if "seq_bn" in name else 1e-6)
        generator = torch.Generator().manual_seed(7)
        for parameter in own.values():
            parameter.add_(torch.empty_like(parameter).normal_(std=0.1, generator=generator))
    before = pooled(backbone)
    before.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in own.values() if p.requires_grad)
    method.finalize(backbone)
    torch.testing.assert_close(pooled(backbone), before, atol=1e-5, rtol=0)
    assert (pooled(mini()) - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["lora", "dora", "ia3"])
def test_no_module_of_the_library_remains_after_merging(name: str) -> None:
    method, backbone, plain = AdaptersMethod(name), mini(), mini()
    method.adapt(backbone, torch.Generator().manual_seed(0))
    method.finalize(backbone)
    fold(plain)
    assert method.method_modules(backbone) == []
    assert backbone.state_dict().keys() == plain.state_dict().keys()
    assert {type(block) for block in backbone.blocks} == {FoldedViltBlock}


def test_seq_bn_learns() -> None:
    method, backbone = AdaptersMethod("seq_bn", {"reduction_factor": 4}), mini().train()
    method.adapt(backbone, torch.Generator().manual_seed(0))
    target = torch.full((2, D), 0.5)
    optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(8):
        loss = (pooled(backbone) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_weights_are_drawn_from_the_generator_and_not_the_global_one() -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        method, backbone = AdaptersMethod("compacter"), mini()
        method.adapt(backbone, torch.Generator().manual_seed(seed))
        return list(method.method_parameters(backbone))

    weights(0)
    before = torch.random.get_rng_state()
    first, again, other = weights(0), weights(0), weights(1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("prompt_tuning", "prompt_tuning"),
        ("prefix_tuning", "prefix_tuning"),
        ("seq_bn_inv", "invertible"),
        ("loreft", "reft"),
        ("mam", "prefix_tuning"),
        ("mtl_lora", "mtl_lora"),
    ],
)
def test_unsupported_configurations_are_refused(name: str, kind: str) -> None:
    with pytest.raises(UserError, match=f"^{name}: {kind} of the adapters library does not work"):
        AdaptersMethod(name)


def test_vera_which_is_not_vera_is_refused_with_a_pointer() -> None:
    with pytest.raises(UserError, match=r"trains whole d×d matrices and is not VeRA; use peft:vera\."):
        AdaptersMethod("vera")


@pytest.mark.parametrize(
    ("name", "setting", "value", "message"),
    [
        (
            "seq_bn",
            "reduction_factor",
            "-3",
            "seq_bn: reduction_factor must be from 0.015625 to 65,536, got -3",
        ),
        (
            "seq_bn",
            "reduction_factor",
            "0",
            "seq_bn: reduction_factor must be from 0.015625 to 65,536, got 0",
        ),
        ("par_bn", "reduction_factor", "nan", "par_bn: reduction_factor must be a number, got 'nan'"),
        ("compacter", "phm_dim", "-4", "compacter: phm_dim must be from 1 to 65,536, got -4"),
        ("adapters:lora", "r", "0", "lora: r must be from 1 to 65,536, got 0"),
        ("ia3", "alpha", "-1", "ia3: alpha must be above 0, got -1"),
        ("seq_bn", "reduction_factor", "1e-9", "reduction_factor must be from 0.015625 to 65,536, got 1e-09"),
        ("compacter", "hypercomplex_nonlinearity", "zz", "must be one of phm, glorot-normal, glorot-uniform"),
        ("adapters:lora", "alpha", "zz", "lora: alpha must be a number, got 'zz'"),
        ("seq_bn", "ln_before", "3", "seq_bn: ln_before must be true or false, got '3'"),
        ("adapters:lora", "r", "2.5", "lora: r must be a whole number, got '2.5'"),
        (
            "adapters:lora",
            "attn_matrices",
            "q+z",
            "attn_matrices must be some of q, k, v, joined by '+'; got 'q+z'",
        ),
        ("seq_bn", "dropout", "1.5", "seq_bn: dropout must be at least 0 and below 1, got 1.5"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(name: str, setting: str, value: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        build_method(Spec(name, {setting: value}))


def test_unknown_names_and_settings_get_a_suggestion() -> None:
    with pytest.raises(UserError, match="Did you mean 'seq_bn'"):
        AdaptersMethod("seqbn")
    with pytest.raises(UserError, match="Did you mean 'reduction_factor'"):
        AdaptersMethod("seq_bn", {"reduction_facter": 4})


def test_text_is_converted_to_the_settings_type() -> None:
    settings = AdaptersMethod("par_bn", {"reduction_factor": "8", "scaling": 2, "ln_before": "true"}).config()
    assert settings["reduction_factor"] == 8
    assert isinstance(settings["scaling"], float)
    assert settings["ln_before"] is True
    assert AdaptersMethod("par_bn", {"scaling": "learned"}).config()["scaling"] == "learned"
    settings = AdaptersMethod("lora", {"attn_matrices": "q+k", "leave_out": "0+11", "dropout": ".1"}).config()
    assert settings["attn_matrices"] == ["q", "k"]
    assert settings["leave_out"] == [0, 11]
    assert settings["dropout"] == 0.1


def test_each_instance_bears_its_configurations_name() -> None:
    assert AdaptersMethod("seq_bn").name == "seq_bn"
    assert AdaptersMethod("dora").name == "dora"


def test_settings_refused_by_the_library_are_user_errors() -> None:
    method = AdaptersMethod("compacter", {"phm_dim": 7})
    with pytest.raises(UserError, match="compacter: the adapters library refuses these settings"):
        method.adapt(mini(), torch.Generator())


def test_layers_to_leave_out_must_exist() -> None:
    AdaptersMethod("seq_bn", {"leave_out": 3}).adapt(mini(), torch.Generator())
    with pytest.raises(
        UserError, match=r"^seq_bn: leave_out must be layers from 0 to 11, joined by '\+'; got '99'"
    ):
        AdaptersMethod("seq_bn", {"leave_out": "3+99"}).adapt(mini(), torch.Generator())


def test_a_backbone_without_interface_is_named() -> None:
    class Other(nn.Module):
        name = "other"

    with pytest.raises(UserError, match="no plug-in interface for other"):
        AdaptersMethod("seq_bn").adapt(Other(), torch.Generator())  # type: ignore[arg-type]


def test_gated_updates_are_not_merged() -> None:
    method, backbone = AdaptersMethod("lora", {"use_gating": True}), mini().eval()
    method.adapt(backbone, torch.Generator().manual_seed(0))
    for parameter in method.method_parameters(backbone):
        nn.init.normal_(parameter, std=0.1)
    before = pooled(backbone)
    method.finalize(backbone)
    assert torch.equal(pooled(backbone), before)
    assert method.method_modules(backbone)
