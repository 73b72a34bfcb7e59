from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from harness.backbones.base import BackboneOptions
from harness.backbones.block import BlockInput, BlockOutput, Tokens
from harness.backbones.inputs import Inputs, Stream
from harness.backbones.vilt.loading import load_vilt_mini
from harness.backbones.vilt.model import ViltBackbone
from harness.errors import UserError
from methods.lora import LoRA
from methods.prompts import DeepPrompt, Prompt, PromptedBlock, PromptOptions, ShallowPrompt, prompt_length
from tests.support.blocks import run
from tests.support.tiny_llava import tiny_llava

both_depths = pytest.mark.parametrize("method", [ShallowPrompt, DeepPrompt])


def adapted(method: type[ShallowPrompt] | type[DeepPrompt]) -> ViltBackbone:
    backbone = load_vilt_mini(BackboneOptions(weights="random"))
    method(PromptOptions(tokens=3)).adapt(backbone, torch.Generator().manual_seed(0))
    for name, parameter in backbone.named_parameters():
        if name.endswith(".tokens"):
            torch.nn.init.normal_(parameter)
    return backbone.eval()


def example(backbone: ViltBackbone) -> Inputs:
    return backbone.example_inputs(2, 5, (64, 64), torch.Generator().manual_seed(1))


def test_prompts_are_inserted_after_the_first_token() -> None:
    prompt = Prompt(2, 4, torch.Generator())
    hidden = torch.randn(3, 5, 4)
    prompted = prompt(hidden)
    assert torch.equal(prompted[:, 0], hidden[:, 0])
    assert torch.equal(prompted[:, 1:3], prompt.tokens.expand(3, 2, 4))
    assert torch.equal(prompted[:, 3:], hidden[:, 1:])


def test_masks_let_every_token_attend_to_the_prompt() -> None:
    prompt = Prompt(2, 4, torch.Generator())
    boolean = torch.tensor([[True, False, True]])
    assert prompt.widen(boolean).tolist() == [[True, True, True, False, True]]
    additive = torch.tensor([[[[0.0, -9.0, 0.0]]]])
    assert prompt.widen(additive).tolist() == [[[[0.0, 0.0, 0.0, -9.0, 0.0]]]]


@both_depths
@torch.no_grad()
def test_padding_of_text_changes_nothing(method: type[ShallowPrompt]) -> None:
    backbone = adapted(method)
    inputs = example(backbone)
    mask = (torch.arange(9) < 5).expand(2, 9)
    padded = Inputs(F.pad(inputs.input_ids, (0, 4)), mask, inputs.pixels)
    torch.testing.assert_close(backbone(padded), backbone(inputs), atol=1e-5, rtol=0)


@torch.no_grad()
def test_shallow_prompts_stay_and_the_first_token_remains_the_classification_token() -> None:
    backbone = adapted(ShallowPrompt)
    embedded = backbone.encode(example(backbone))
    prompted = backbone.prompt(embedded)["joint"].hidden
    after = backbone.run_blocks(embedded)["joint"].hidden
    tokens = embedded["joint"].hidden.shape[1]
    assert prompted.shape[1] == after.shape[1] == tokens + 3
    assert torch.equal(prompted[:, 0], embedded["joint"].hidden[:, 0])
    pooled = backbone.model.pooler(backbone.model.layernorm(after[:, :1]))
    torch.testing.assert_close(backbone(example(backbone)), pooled)


@torch.no_grad()
def test_deep_prompts_are_new_in_every_block_and_removed_after_it() -> None:
    backbone = adapted(DeepPrompt)
    hidden = torch.randn(2, 7, 128)
    expected = hidden
    for block in backbone.blocks:
        tokens = block.prompt.tokens.expand(2, 3, 128)
        inside = run(block.block, torch.cat([expected[:, :1], tokens, expected[:, 1:]], dim=1))
        expected = torch.cat([inside[:, :1], inside[:, 4:]], dim=1)
    found = backbone.run_blocks({"joint": Stream(hidden)})["joint"].hidden
    assert found.shape == hidden.shape
    torch.testing.assert_close(found, expected)


def test_a_prompted_block_is_still_a_block() -> None:
    backbone = adapted(DeepPrompt)
    wrapped = backbone.blocks[4]
    assert isinstance(wrapped, PromptedBlock)
    assert (wrapped.name, wrapped.stream, wrapped.sublayers) == ("joint.4", "joint", ("attention", "mlp"))
    assert wrapped.sequential is wrapped.block.sequential
    assert wrapped.parallel is wrapped.block.parallel
    assert wrapped.projections().keys() == wrapped.block.projections().keys()
    LoRA().adapt(backbone, torch.Generator().manual_seed(0))
    assert wrapped.projections()["attention.query"] is wrapped.block.attention.attention.query
    assert backbone(example(backbone)).shape == (2, 128)


@torch.no_grad()
def test_prompted_block_passes_the_other_stream_unchanged() -> None:
    seen = {}

    class Spy(torch.nn.Module):
        name, stream = "text.0", "text"

        def forward(self, inputs: BlockInput) -> BlockOutput:
            tokens = inputs.tokens
            seen.update(
                hidden=tokens.hidden.shape, mask=tokens.mask.shape, sizes=tokens.sizes, context=inputs.context
            )
            return inputs.result(tokens.hidden)

    block = PromptedBlock(Spy(), Prompt(2, 4, torch.Generator()))
    hidden, mask = torch.randn(1, 3, 4), torch.zeros(1, 1, 1, 3)
    context = Tokens(torch.randn(1, 6, 4), torch.zeros(1, 1, 1, 6))
    own = Tokens(hidden, mask, sizes=torch.tensor([[1.0, 3.0, 2.0]]))
    out = block(BlockInput(own, context)).tokens
    assert torch.equal(out.hidden, hidden)
    assert out.mask is mask
    assert out.sizes is own.sizes
    assert seen["hidden"] == (1, 5, 4)
    assert seen["mask"] == (1, 1, 1, 5)
    assert seen["sizes"].tolist() == [[1, 1, 1, 3, 2]]
    assert seen["context"] is context


@pytest.mark.parametrize(("method", "copies"), [(ShallowPrompt, 1), (DeepPrompt, 12)])
def test_parameters_are_tokens_times_width(method: type[ShallowPrompt], copies: int) -> None:
    own = method().method_parameters(adapted(method))
    assert sum(p.numel() for p in own) == copies * 3 * 128


def test_default_length_at_full_size_is_the_papers() -> None:
    assert [prompt_length(width, None) for width in (768, 512, 128)] == [200, 200, 16]
    assert prompt_length(768, 5) == 5
    with pytest.raises(UserError, match="tokens must be from 1 to 4,096"):
        PromptOptions(tokens=0)


def test_deep_prompts_are_refused_by_a_decoder() -> None:
    with pytest.raises(UserError, match="use shallow_prompt"):
        DeepPrompt().adapt(tiny_llava(), torch.Generator())
