"""LLaVA against Hugging Face's implementation: logits, greedy answers with a cache, skipped layers, deployment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from harness.backbones.base import BackboneOptions
from harness.backbones.block import BlockInput, BlockOutput
from harness.backbones.inputs import Inputs
from harness.backbones.llava.block import FoldedLlavaBlock
from harness.backbones.llava.loading import load_llava, read_folder
from harness.backbones.llava.model import LlavaBackbone
from harness.backbones.llava.processor import LlavaProcessor
from harness.errors import UserError
from harness.registry import build_method
from harness.specs import parse_spec
from tests.support.tiny_llava import IMAGE_ID, PATCHES, randomize, tiny_config

WORDS = ["<s>", "</s>", "<unk>", "USER", ":", "ASSISTANT", "what", "is", "this", "a", "dog", "red", "image"]


@pytest.fixture(scope="module")
def reference() -> LlavaForConditionalGeneration:
    """Hugging Face's model, small and random, with grouped-query attention."""
    model = LlavaForConditionalGeneration(tiny_config()).eval()
    randomize(model)
    return model


@pytest.fixture(scope="module")
def folder(reference: LlavaForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    reference.config.save_pretrained(folder)
    save_file({k: v.clone() for k, v in reference.state_dict().items()}, folder / "model.safetensors")
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([AddedToken("<image>", special=True), "</s>", "<s>"])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def backbone(folder: Path) -> LlavaBackbone:
    return load_llava(BackboneOptions(weights=str(folder)))


@pytest.fixture
def inputs(backbone: LlavaBackbone) -> Inputs:
    """Prompts of 9 and 6 tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, (2, 9), generator=generator)
    mask = torch.ones(2, 9, dtype=torch.bool)
    ids[1, 6:], mask[1, 6:] = 1, False
    return Inputs(ids, mask, torch.randn(2, 3, 32, 32, generator=generator))


def for_reference(inputs: Inputs, place: int) -> dict[str, Tensor]:
    """The same prompts as Hugging Face takes them: image tokens in the ids, padded on the left."""
    assert inputs.text_mask is not None
    image = torch.full((len(inputs.input_ids), PATCHES), IMAGE_ID)
    ids = torch.cat([inputs.input_ids[:, :place], image, inputs.input_ids[:, place:]], dim=1)
    mask = torch.cat([inputs.text_mask[:, :place], image > 0, inputs.text_mask[:, place:]], dim=1)
    padding = [int((~kept).sum()) for kept in mask]
    rolled = [(row.roll(n), kept.roll(n)) for row, kept, n in zip(ids, mask, padding, strict=True)]
    return {
        "input_ids": torch.stack([row for row, _ in rolled]),
        "attention_mask": torch.stack([kept for _, kept in rolled]).long(),
        "pixel_values": inputs.pixels,
    }


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@torch.no_grad()
def test_the_next_token_has_hugging_face_logits(
    reference: LlavaForConditionalGeneration, backbone: LlavaBackbone, inputs: Inputs
) -> None:
    expected = reference(**for_reference(inputs, backbone.processor.image_position)).logits[:, -1]
    assert difference(backbone.vocabulary_logits(backbone(inputs)), expected) < 1e-5
    assert float(expected.std()) > 0.1


@torch.no_grad()
def test_each_token_of_an_answer_has_hugging_face_logits(
    reference: LlavaForConditionalGeneration, backbone: LlavaBackbone, inputs: Inputs
) -> None:
    answers = torch.tensor([[7, 8, 9], [10, 11, 1]])
    given = for_reference(inputs, backbone.processor.image_position)
    ids = torch.cat([given["input_ids"], answers], dim=1)
    mask = torch.cat([given["attention_mask"], torch.ones_like(answers)], dim=1)
    expected = reference(input_ids=ids, attention_mask=mask, pixel_values=inputs.pixels).logits[:, -4:-1]
    assert difference(backbone.answer_logits(inputs, answers), expected) < 1e-5


@torch.no_grad()
def test_greedy_answers_equal_hugging_face_generate(
    reference: LlavaForConditionalGeneration, backbone: LlavaBackbone, inputs: Inputs
) -> None:
    given = for_reference(inputs, backbone.processor.image_position)
    expected = reference.generate(
        **given, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=1
    )
    assert torch.equal(backbone.generate(inputs, 6, stop=()), expected[:, given["input_ids"].shape[1] :])


def without_cache(backbone: LlavaBackbone, inputs: Inputs, length: int) -> Tensor:
    """Greedy answers in which every token is computed from the whole sequence."""
    written = torch.empty(len(inputs.input_ids), 0, dtype=torch.long)
    for _ in range(length):
        following = torch.cat([written, torch.zeros(len(written), 1, dtype=torch.long)], dim=1)
        token = backbone.answer_logits(inputs, following)[:, -1].argmax(dim=-1)
        written = torch.cat([written, token[:, None]], dim=1)
    return written


class Skipped(nn.Module):
    """A block that does nothing: its keys and values are never computed."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.stream = name, "joint"

    def forward(self, inputs: BlockInput) -> BlockOutput:
        return inputs.result(inputs.tokens.hidden)


@pytest.mark.parametrize("skipped", [(), (0,), (0, 2), (3,), (0, 1, 2, 3)])
@torch.no_grad()
def test_answers_with_a_cache_equal_those_without_whatever_is_skipped(
    skipped: tuple[int, ...], backbone: LlavaBackbone, inputs: Inputs
) -> None:
    for index in skipped:
        backbone.blocks[index] = Skipped(backbone.block_names[index])
    assert torch.equal(backbone.generate(inputs, 5, stop=()), without_cache(backbone, inputs, 5))


@torch.no_grad()
def test_generation_of_a_row_ends_with_its_stop_token(backbone: LlavaBackbone, inputs: Inputs) -> None:
    free = backbone.generate(inputs, 6, stop=())
    stop = int(free[0, 2])
    ended = backbone.generate(inputs, 6, stop=(stop,))
    first = free[0].tolist().index(stop)
    assert ended[0, : first + 1].tolist() == free[0, : first + 1].tolist()
    assert set(ended[0, first:].tolist()) == {stop}


@torch.no_grad()
def test_scores_of_candidates_are_sums_of_their_tokens_log_likelihoods(
    backbone: LlavaBackbone, inputs: Inputs
) -> None:
    candidates = [[7, 8, 9], [10], [7, 9]]
    scores = backbone.answer_scores(inputs, candidates)
    for column, candidate in enumerate(candidates):
        answers = torch.tensor(candidate).expand(2, -1)
        likelihood = backbone.answer_logits(inputs, answers).log_softmax(dim=-1)
        assert difference(scores[:, column], likelihood.gather(2, answers[:, :, None]).sum(dim=(1, 2))) < 1e-5


SPECS = [
    "full",
    "lora",
    "adapter",
    "parallel",
    "shallow_prompt[tokens=3]",
    "das[blocks=joint.0+joint.2]",
]


@pytest.mark.parametrize("spec", SPECS)
def test_methods_train_and_deploy_the_same(spec: str, backbone: LlavaBackbone, inputs: Inputs) -> None:
    method = build_method(parse_spec(spec))
    method.adapt(backbone, torch.Generator().manual_seed(0))
    answers = torch.tensor([[7, 8, 9], [10, 11, 1]])
    backbone.answer_logits(inputs, answers).square().mean().backward()
    trained = [(name, p) for name, p in backbone.named_parameters() if p.requires_grad]
    assert [name for name, p in trained if p.grad is None] == []
    with torch.no_grad():
        for place, (_, parameter) in enumerate(trained):
            generator = torch.Generator().manual_seed(place)
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        before, written = backbone.answer_logits(inputs, answers), backbone.generate(inputs, 5, stop=())
        method.finalize(backbone)
        assert difference(backbone.answer_logits(inputs, answers), before) < 1e-4
        assert torch.equal(backbone.generate(inputs, 5, stop=()), written)
    if not spec.startswith("das"):
        assert {type(block) for block in backbone.blocks} == {FoldedLlavaBlock}


def test_a_prompt_has_the_image_at_its_place_and_keeps_the_template(folder: Path) -> None:
    processor = LlavaProcessor(folder, 32, 16, 10)
    short, long = processor.tokenize(["what is this", "a dog a dog a dog a dog"])
    words = [[WORDS[number] for number in ids] for ids in (short, long)]
    assert words[0] == ["<s>", "USER", ":", "what", "is", "this", "ASSISTANT", ":"]
    assert words[1] == ["<s>", "USER", ":", "a", "dog", "a", "dog", "a", "ASSISTANT", ":"]
    assert processor.image_position == 3
    assert [WORDS[number] for number in processor.answer_ids("red dog")] == ["red", "dog", "</s>"]


def test_older_names_and_several_files_are_read(
    reference: LlavaForConditionalGeneration,
    folder: Path,
    tmp_path: Path,
    inputs: Inputs,
    backbone: LlavaBackbone,
) -> None:
    older = {}
    for full, tensor in reference.state_dict().items():
        name = full.replace("model.language_model.", "language_model.model.").replace(
            "lm_head.", "language_model.lm_head."
        )
        older[name.removeprefix("model.") if "vision" in name or "projector" in name else name] = (
            tensor.clone()
        )
    names = sorted(older)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: older[key] for key in keys}, tmp_path / file)
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    with torch.no_grad():
        assert difference(load_llava(BackboneOptions(weights=str(tmp_path)))(inputs), backbone(inputs)) == 0


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    with pytest.raises(UserError, match=r"no b\.safetensors"):
        read_folder(tmp_path)
    for content in ("[]", '{"weight_map": [1]}', '{"weight_map": {"a": 3}}'):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with pytest.raises(UserError, match=r"index\.json: not an index of weights"):
            read_folder(tmp_path)


def test_llava_7b_has_its_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        backbone = load_llava(BackboneOptions(weights="random"))
    decoder = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096
    assert sum(p.numel() for part in backbone.components()["decoder"] for p in part.parameters()) == decoder
    held = {id(p) for parts in backbone.components().values() for part in parts for p in part.parameters()}
    assert held == {id(p) for p in backbone.parameters()}
