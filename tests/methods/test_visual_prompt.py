"""Visual prompting: the frame's size and place, its update, the terms of TVP, and other image sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from harness.backbones.base import Backbone, BackboneOptions
from harness.backbones.generative import GenerativeBackbone
from harness.backbones.inputs import Inputs
from harness.backbones.meter.processor import MeterProcessor
from harness.backbones.vilt.processor import ViltProcessor
from harness.errors import UserError
from harness.measure.flops import count_macs
from harness.registry import resolve_backbone
from methods.base import TrainingPart
from methods.clip_score import ClipScore
from methods.frame import Frame, frame_size, frame_width
from methods.visual_prompt import LABEL, TVP, VP, TVPOptions, VPOptions, image_features
from tests.support.tiny_llava import prompts, tiny_llava


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frame(side: int = 8, width: int = 2, value: float = 0.25) -> Frame:
    values = torch.full((3, frame_size(side, width) // 3), value)
    return Frame(values, side, width, ViltProcessor(None, side, 4, 8)).eval()


@pytest.fixture(params=["vilt-mini", "meter-mini", "llava"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    if request.param == "llava":
        return tiny_llava()
    return resolve_backbone(request.param)(BackboneOptions())


def inputs_of(backbone: Backbone, rows: int = 3) -> Inputs:
    if backbone.name == "llava":
        return prompts(rows)
    return backbone.example_inputs(rows, 5, (64, 64), seeded(1))


@pytest.mark.parametrize(
    ("side", "width", "values"),
    [(224, 30, 69_840), (384, 51, 203_796), (384, 30, 127_440)],
)
def test_a_frame_has_the_published_number_of_values(side: int, width: int, values: int) -> None:
    assert frame_size(side, width) == values
    assert sum(each.numel() for each in frame(side, width).parameters()) == values


def test_the_default_width_keeps_the_published_proportion() -> None:
    assert [frame_width(side) for side in (224, 384, 64)] == [30, 51, 9]
    assert frame_width(384, 30) == 30


@torch.no_grad()
def test_the_image_is_shrunk_and_the_frame_is_added_before_normalisation() -> None:
    pixels = torch.full((2, 3, 8, 8), 0.5)  # normalised by mean and deviation 0.5
    framed = frame()(pixels, None)
    torch.testing.assert_close(framed[:, :, 2:6, 2:6], pixels[:, :, 2:6, 2:6])
    border = torch.ones(8, 8, dtype=torch.bool)
    border[2:6, 2:6] = False
    torch.testing.assert_close(framed[:, :, border], torch.full((2, 3, 48), 2 * 0.25 - 1))
    fresh = Frame(torch.zeros(3, 48), 8, 2, MeterProcessor(None, 8, 4, 8))
    black = -torch.tensor([0.48145466 / 0.26862954, 0.4578275 / 0.26130258, 0.40821073 / 0.27577711])
    torch.testing.assert_close(fresh.eval()(pixels, None)[0, :, 0, 0], black)


@torch.no_grad()
def test_values_are_not_clamped_and_stand_row_by_row() -> None:
    values = torch.arange(3 * 12.0).view(3, 12)
    small = Frame(values, 4, 1, ViltProcessor(None, 4, 4, 8)).eval()
    canvas = small.canvas()
    assert canvas[0].tolist() == [[0, 1, 2, 3], [4, 0, 0, 5], [6, 0, 0, 7], [8, 9, 10, 11]]
    assert float(small(torch.zeros(1, 3, 4, 4), None).max()) == 2 * 35 - 1
    grey = small.zero_one(torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1))
    assert grey.flatten().tolist() == [0.0, 0.5, 1.0]


@torch.no_grad()
def test_a_padded_image_has_its_frame_inside_the_padding() -> None:
    pixels = torch.zeros(2, 3, 8, 12)
    sizes = torch.tensor([[8, 12], [8, 8]])
    framed = frame()(pixels, sizes)
    torch.testing.assert_close(framed[1:, :, :, :8], frame()(pixels[1:, :, :, :8], None))
    assert not framed[1, :, :, 8:].any()
    # 12 wide: the frame is 3 pixels wide left and right and 2 high above and below
    assert framed[0, 0, 4].ne(0).nonzero().flatten().tolist() == [0, 1, 2, 9, 10, 11]
    assert framed[0, 0, :, 6].ne(0).nonzero().flatten().tolist() == [0, 1, 6, 7]


def test_only_the_frame_and_no_macs_are_added(backbone: Backbone) -> None:
    inputs = inputs_of(backbone)

    def macs(modules: Any) -> int:
        counts = count_macs(
            backbone,
            torch.nn.Identity(),
            lambda: backbone(inputs),
            modules,
            text_length=5,
            image_size=(64, 64),
        )
        return counts.macs_total

    backbone.eval()
    with torch.no_grad():
        before = macs(())
        method = VP()
        method.adapt(backbone, seeded())
        assert macs(method.method_modules(backbone)) == before
    assert [name for name, each in backbone.named_parameters() if each.requires_grad] == ["frame.values"]


def test_the_gradient_reaches_the_frame_through_the_encoder(backbone: Backbone) -> None:
    method = VP()
    method.adapt(backbone, seeded())
    backbone(inputs_of(backbone)).square().sum().backward()
    grad = backbone.frame.values.grad  # type: ignore[union-attr]
    assert isinstance(grad, Tensor)
    assert float((grad != 0).float().mean()) > 0.9


@pytest.mark.parametrize("name", ["vilt-mini", "meter-mini"])
def test_pairs_of_texts_and_images_are_framed_once(name: str) -> None:
    backbone = resolve_backbone(name)(BackboneOptions())
    VP().adapt(backbone, seeded())
    with torch.no_grad():
        backbone.frame.values.normal_(generator=seeded())  # type: ignore[union-attr,operator]
        one = inputs_of(backbone, 4)
        pairs = replace(one, pixels=one.pixels[:2])
        paired = backbone.eval().forward_pairs(pairs)
        torch.testing.assert_close(paired, backbone(pairs.paired()), atol=1e-5, rtol=1e-5)


def test_a_step_of_the_frame_has_the_published_length() -> None:
    backbone = tiny_llava()
    for options, rate in ((VPOptions(), 10.0), (VPOptions(step=4.0), 4.0)):
        method = VP(options)
        method.adapt(backbone, seeded())
        (group,) = method.parameter_groups(backbone)
        values = sum(each.numel() for each in group.parameters)
        assert group.normalized
        length = group.learning_rate_scale * backbone.base_learning_rate
        assert length == pytest.approx(rate * (values / 69_840) ** 0.5)
    (group,) = VP(VPOptions(update="adamw")).parameter_groups(backbone)
    assert not group.normalized
    assert group.learning_rate_scale * backbone.base_learning_rate == pytest.approx(0.01)


def part_of(rows: int, labels: list[str] | None = None) -> TrainingPart:
    return TrainingPart(rows, lambda: torch.zeros(rows), lambda: labels)


def test_feature_consistency_is_the_distance_from_the_clean_image(backbone: Backbone) -> None:
    method = TVP(TVPOptions(fca=0.5, tse=0.0))
    method.adapt(backbone, seeded())
    inputs = inputs_of(backbone)
    with torch.no_grad():
        backbone.frame.values.normal_(generator=seeded())  # type: ignore[union-attr,operator]
    for module in backbone.modules():
        module.training = isinstance(module, Frame)  # no dropout
    backbone(inputs)
    found = method.weighted_regularizer(backbone, part_of(3))
    assert found is not None
    assert method.weighted_regularizer(backbone, part_of(3)) is None  # each pass counts once
    framed = image_features(backbone, inputs.pixels, None)
    kept, backbone.frame = backbone.frame, None
    clean = image_features(backbone, inputs.pixels, None)
    backbone.frame = kept
    expected = 0.5 * (framed - clean).square().sum(dim=-1).sqrt().mean()
    torch.testing.assert_close(found, expected)
    (grad,) = torch.autograd.grad(found, [backbone.frame.values])  # type: ignore[union-attr,list-item]
    assert grad.any()


def test_task_semantics_is_the_matching_heads_score_of_the_label() -> None:
    backbone = resolve_backbone("vilt-mini")(BackboneOptions())
    method = TVP(TVPOptions(fca=0.0, tse=2.0))
    method.adapt(backbone, seeded())
    inputs = inputs_of(backbone, 2)
    for module in backbone.modules():
        module.training = isinstance(module, Frame)
    for _ in range(2):  # two images per example
        backbone(inputs)
    found = method.weighted_regularizer(backbone, part_of(2, ["red", "two cubes"]))
    assert found is not None
    heads = backbone.pretrained_heads
    scores = []
    for row, label in enumerate(("red", "two cubes")):
        ids = torch.tensor(backbone.processor.tokenize([LABEL.format(label=label)]))
        pooled = backbone(Inputs(ids, None, inputs.pixels[row : row + 1]))
        logits = F.linear(pooled, heads["itm_score.fc.weight"].float(), heads["itm_score.fc.bias"].float())[0]
        scores.append(logits[1] - logits[0])
    torch.testing.assert_close(found, -2 * torch.stack(scores).mean(), atol=1e-4, rtol=1e-4)


def test_task_semantics_of_a_decoder_is_the_likelihood_of_the_sentence() -> None:
    backbone = resolve_backbone("llava-mini")(BackboneOptions(weights="random"))
    assert isinstance(backbone, GenerativeBackbone)
    method = TVP(TVPOptions(fca=0.0, tse=2.0))
    method.adapt(backbone, seeded())
    inputs = inputs_of(backbone, 2)
    for module in backbone.modules():
        module.training = isinstance(module, Frame)
    backbone(inputs)
    found = method.weighted_regularizer(backbone, part_of(2, ["red", "two cubes"]))
    assert found is not None
    scores = []
    for row, label in enumerate(("red", "two cubes")):
        prompt = Inputs(torch.tensor(backbone.processor.tokenize([""])), None, inputs.pixels[row : row + 1])
        ids = backbone.processor.answer_ids(LABEL.format(label=label))
        scores.append(backbone.answer_scores(prompt, [ids])[0, 0] / len(ids))
    torch.testing.assert_close(found, -2 * torch.stack(scores).mean(), atol=1e-4, rtol=1e-4)


def test_labels_that_are_no_texts_and_a_missing_judge_are_refused() -> None:
    untrained, method = resolve_backbone("vilt-mini")(BackboneOptions(weights="random")), TVP()
    method.adapt(untrained, seeded())
    untrained.train()(inputs_of(untrained))
    with pytest.raises(UserError, match=r"name a CLIP model with clip=…, or give tse=0"):
        method.weighted_regularizer(untrained, part_of(3, ["red"] * 3))
    backbone = resolve_backbone("vilt-mini")(BackboneOptions())
    method = TVP()
    method.adapt(backbone, seeded())
    backbone.train()(inputs_of(backbone))
    with pytest.raises(UserError, match="labels are not texts"):
        method.weighted_regularizer(backbone, part_of(3))


def test_clip_scores_framed_images(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 8, "max_position_embeddings": 12, "eos_token_id": 1, "bos_token_id": 0}
    config = CLIPConfig(
        text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8}, projection_dim=8
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>", "a", "b", "c</w>", "c"]
    (tmp_path / "vocab.json").write_text(
        "{" + ",".join(f'"{word}": {i}' for i, word in enumerate(words)) + "}"
    )
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    images = torch.rand(2, 3, 16, 16, generator=seeded(), requires_grad=True)
    score = ClipScore(str(tmp_path))(images, ["a b", "c"])
    score.backward()
    assert images.grad is not None
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    ids, attention = torch.tensor([[0, 2, 3, 1], [0, 6, 1, 1]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        found = model(ids, (images - mean) / deviation, attention)
        expected = found.logits_per_image.diagonal().mean()
    torch.testing.assert_close(score.detach(), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="cannot be loaded"):
        ClipScore(str(tmp_path / "missing"))


@torch.no_grad()
def test_a_frame_is_carried_over_to_another_size() -> None:
    method, other = VP(), VP()
    source = resolve_backbone("vilt-mini")(BackboneOptions())
    method.adapt(source, seeded())
    values = torch.rand(3, frame_size(64, 9) // 3, generator=seeded())
    target = tiny_llava().eval()
    other.carry_over(target, {"frame.values": values, "model.pooler.dense.bias": torch.zeros(1)}, 64)
    assert isinstance(target.frame, Frame)
    assert torch.equal(target.frame.values, values)
    pixels = torch.zeros(1, 3, 32, 32)
    shown = target.frame.zero_one(target.frame(pixels, None))[0]
    canvas = F.interpolate(target.frame.canvas()[None], size=(32, 32), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(
        shown[:, :4], canvas[:, :4], atol=1e-6, rtol=1e-5
    )  # 9 of 64 are 4 of 32 pixels
    assert not torch.equal(target(prompts()), tiny_llava().eval()(prompts()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPOptions(width=0), "width must be from 1 to 65,536"),
        (lambda: VPOptions(step=0.0), "step must be above 0"),
        (lambda: TVPOptions(fca=-1.0), "fca must be at least 0"),
        (
            lambda: VP(VPOptions(width=16)).adapt(tiny_llava(), seeded()),
            "leaves nothing of images of 32 pixels",
        ),
    ],
)
def test_wrong_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
