"""ViLT's forward pass against stored outputs of the original and against Hugging Face's model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViltConfig, ViltModel

from harness.backbones.inputs import Inputs
from harness.backbones.vilt.loading import config_from_original, convert_original
from harness.backbones.vilt.model import ViltBackbone
from harness.backbones.vilt.processor import ViltProcessor

FIXTURE = Path("../shared/data/checkpoints/vilt_orig_small.safetensors")


def tiny_config(**changes: object) -> ViltConfig:
    settings: dict[str, object] = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 64,
        "patch_size": 16,
        "max_position_embeddings": 12,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-6,
    }
    return ViltConfig(**{**settings, **changes})


def build(config: ViltConfig) -> ViltBackbone:
    processor = ViltProcessor(None, config.image_size, config.patch_size, config.max_position_embeddings)
    return ViltBackbone(config, processor).eval()


@pytest.fixture(scope="module")
def original() -> dict[str, torch.Tensor]:
    if not FIXTURE.is_file():
        pytest.skip(f"{FIXTURE} is not here")
    return load_file(FIXTURE)


@pytest.fixture(scope="module")
def converted(original: dict[str, torch.Tensor]) -> ViltBackbone:
    tensors = {k.removeprefix("sd."): v for k, v in original.items() if k.startswith("sd.")}
    backbone = build(config_from_original(tensors, num_heads=2))
    state, heads = convert_original(tensors)
    backbone.widen_token_types(3)
    backbone.model.load_state_dict(state)
    assert {key.split(".")[0] for key in heads} == {
        "vqa_classifier",
        "nlvr2_classifier",
        "itm_score",
        "rank_output",
    }
    return backbone


@torch.no_grad()
def test_every_stored_state_of_the_original_is_reproduced(
    original: dict[str, torch.Tensor], converted: ViltBackbone
) -> None:
    pixels = original["in.image_0"]
    painted = pixels.abs().sum(dim=1).ne(0)  # the original takes all-zero pixels for padding
    sizes = torch.stack([painted.any(dim=2).sum(dim=1), painted.any(dim=1).sum(dim=1)], dim=1)
    # The original's states were stored in float32, and its rounding alone takes 9e-6 of the 1e-5. Ours are
    # computed in float64, so that the rounding of the machine that runs the test does not come on top.
    exact = copy.deepcopy(converted).double()
    inputs = Inputs(original["in.text_ids"], original["in.text_masks"].bool(), pixels.double(), sizes)
    states: dict[str, torch.Tensor] = {}
    for index, block in enumerate(exact.blocks):
        block.register_forward_hook(
            lambda m, a, out, i=index: states.__setitem__(f"full.block{i}", out.tokens.hidden.float())
        )
    features = exact(inputs).float()
    length = inputs.input_ids.shape[1]
    assert set(states) == {"full.block0", "full.block1", "full.block2"}
    for name, ours in states.items():
        theirs = original[name]
        for row, (height, width) in enumerate((sizes // 16).tolist()):
            tokens = int(inputs.text_mask[row].sum())
            expected, found = theirs[row, :tokens], ours[row, :tokens]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(ours[row, length], theirs[row, length], atol=1e-5, rtol=0)
            place = original["full.patch_index"][row, : height * width]
            raster = place[:, 0] * width + place[:, 1]
            found = ours[row, length + 1 :][raster]
            expected = theirs[row, length + 1 : length + 1 + height * width]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(features, original["full.cls_feats"], atol=1e-5, rtol=0)


def hugging_face_copy(backbone: ViltBackbone) -> ViltModel:
    model = ViltModel(backbone.config)
    model.embeddings.text_embeddings.LayerNorm.eps = 1e-12
    model.load_state_dict(backbone.model.state_dict())
    return model.eval()


@torch.no_grad()
def test_pooled_output_equals_hugging_face_with_mixed_shapes_and_padding() -> None:
    torch.manual_seed(0)
    backbone = build(tiny_config())
    torch.nn.init.normal_(backbone.model.embeddings.position_embeddings)
    reference = hugging_face_copy(backbone)
    sizes = torch.tensor([[64, 96], [96, 48], [64, 64]])
    pixels = torch.zeros(3, 3, 96, 96)
    mask = torch.zeros(3, 96, 96, dtype=torch.long)
    for row, (height, width) in enumerate(sizes.tolist()):
        pixels[row, :, :height, :width] = torch.randn(3, height, width)
        mask[row, :height, :width] = 1
    ids = torch.randint(5, 50, (3, 9))
    text_mask = torch.arange(9) < torch.tensor([[9], [4], [6]])
    ours = backbone(Inputs(ids, text_mask, pixels, sizes))
    theirs = reference(
        input_ids=ids, attention_mask=text_mask.long(), pixel_values=pixels, pixel_mask=mask
    ).pooler_output
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@torch.no_grad()
def test_evaluation_is_deterministic_and_leaves_the_global_generator_alone() -> None:
    backbone = build(tiny_config())
    inputs = backbone.example_inputs(2, 6, (64, 96), torch.Generator().manual_seed(1))
    before = torch.random.get_rng_state()
    first, second = backbone(inputs), backbone(inputs)
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())


@torch.no_grad()
def test_padding_of_text_changes_nothing() -> None:
    backbone = build(tiny_config())
    inputs = backbone.example_inputs(2, 6, (64, 64), torch.Generator().manual_seed(1))
    padded = Inputs(
        torch.nn.functional.pad(inputs.input_ids, (0, 3)), (torch.arange(9) < 6).expand(2, 9), inputs.pixels
    )
    torch.testing.assert_close(backbone(padded), backbone(inputs), atol=1e-6, rtol=0)
