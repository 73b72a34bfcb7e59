from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.backbones.base import BackboneOptions
from harness.backbones.folding import fold
from harness.backbones.inputs import Inputs
from harness.backbones.vilt.loading import load_vilt_mini
from harness.backbones.vilt.model import ViltBackbone
from harness.errors import UserError
from methods.adapters_library import AdaptersMethod
from methods.lora import LoRA, LoRALinear, LoRAOptions


def adapted(options: LoRAOptions) -> ViltBackbone:
    backbone = load_vilt_mini(BackboneOptions(weights="random"))
    LoRA(options).adapt(backbone, torch.Generator().manual_seed(0))
    return backbone


def updates(backbone: ViltBackbone) -> dict[str, LoRALinear]:
    return {
        f"{block.name} {role}": module
        for block in backbone.blocks
        for role, module in block.projections().items()
        if isinstance(module, LoRALinear)
    }


def example(backbone: ViltBackbone) -> Inputs:
    return backbone.example_inputs(2, 5, (64, 64), torch.Generator().manual_seed(1))


def randomize(backbone: ViltBackbone) -> None:
    for wrapped in updates(backbone).values():
        nn.init.normal_(wrapped.update.B, std=0.1)


def test_default_targets_are_query_and_value() -> None:
    roles = {name.split()[1] for name in updates(adapted(LoRAOptions()))}
    assert roles == {"attention.query", "attention.value"}


def test_a_target_may_be_a_whole_role() -> None:
    roles = {name.split()[1] for name in updates(adapted(LoRAOptions(targets=("mlp.up", "key"))))}
    assert roles == {"mlp.up", "attention.key"}


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(UserError, match=r"'qery'.*Did you mean 'query'"):
        adapted(LoRAOptions(targets=("qery", "value")))


def test_the_update_is_scaled_by_alpha_over_r() -> None:
    wrapped = next(iter(updates(adapted(LoRAOptions(r=2, alpha=6.0))).values()))
    nn.init.normal_(wrapped.update.B)
    x = torch.randn(3, 4, wrapped.in_features)
    expected = wrapped.base(x) + 3 * (x @ wrapped.update.A.T @ wrapped.update.B.T)
    torch.testing.assert_close(wrapped(x), expected)
    torch.testing.assert_close(wrapped(x[0, 0]), expected[0, 0])


def test_wrapper_has_the_attributes_of_the_wrapped_linear_map() -> None:
    wrapped = next(iter(updates(adapted(LoRAOptions())).values()))
    assert wrapped.weight is wrapped.base.weight
    assert wrapped.bias is wrapped.base.bias
    assert (wrapped.in_features, wrapped.out_features) == (128, 128)


def test_dropout_acts_in_training_only() -> None:
    backbone = adapted(LoRAOptions(dropout=0.5))
    randomize(backbone)
    inputs = example(backbone)
    assert torch.equal(backbone.eval()(inputs), backbone(inputs))
    assert not torch.equal(backbone.train()(inputs), backbone(inputs))


def test_deployed_module_tree_equals_that_of_the_deployed_pretrained_backbone() -> None:
    backbone = adapted(LoRAOptions())
    randomize(backbone)
    LoRA(LoRAOptions()).finalize(backbone)
    pretrained = load_vilt_mini(BackboneOptions(weights="random"))
    fold(pretrained)
    assert backbone.state_dict().keys() == pretrained.state_dict().keys()
    assert [type(m) for m in backbone.modules()] == [type(m) for m in pretrained.modules()]


def test_lora_runs_under_autocast() -> None:
    backbone = adapted(LoRAOptions())
    randomize(backbone)
    inputs = example(backbone)
    expected = backbone(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = backbone(inputs)
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0)


@torch.no_grad()
def test_outputs_equal_those_of_the_adapters_library() -> None:
    ours = adapted(LoRAOptions(r=4, alpha=8.0)).eval()
    randomize(ours)
    theirs = load_vilt_mini(BackboneOptions(weights="random"))
    AdaptersMethod("lora", {"r": 4, "alpha": 8}).adapt(theirs, torch.Generator())
    for block in theirs.blocks:
        for role in ("attention.query", "attention.value"):
            update = updates(ours)[f"{block.name} {role}"].update
            lora = block.projections()[role].loras["petl"]
            lora.lora_A.copy_(update.A)
            lora.lora_B.copy_(update.B)
    inputs = example(ours)
    torch.testing.assert_close(ours(inputs), theirs.eval()(inputs), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_outputs_equal_those_of_peft() -> None:
    peft = pytest.importorskip("peft")
    ours = adapted(LoRAOptions(r=4, alpha=8.0)).eval()
    randomize(ours)
    theirs = load_vilt_mini(BackboneOptions(weights="random"))
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"])
    peft.inject_adapter_in_model(config, theirs.model)
    for block in theirs.blocks:
        for role in ("attention.query", "attention.value"):
            update = updates(ours)[f"{block.name} {role}"].update
            wrapped = block.projections()[role]
            wrapped.lora_A["default"].weight.copy_(update.A)
            wrapped.lora_B["default"].weight.copy_(update.B)
    inputs = example(ours)
    torch.testing.assert_close(ours(inputs), theirs.eval()(inputs), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "wrong",
    [{"r": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ()}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_option_is_named(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"lora: {next(iter(wrong))}"):
        LoRAOptions(**wrong)
