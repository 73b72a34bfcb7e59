from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.backbones.base import BackboneOptions
from harness.backbones.meter.loading import load_meter, resize_positions
from harness.backbones.meter.model import MeterBackbone
from harness.errors import UserError

FIXTURE = Path("../shared/data/checkpoints/meter_orig_small.safetensors")


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    if not FIXTURE.is_file():
        pytest.skip(f"{FIXTURE} is not here")
    return {k.removeprefix("sd."): v for k, v in load_file(FIXTURE).items() if k.startswith("sd.")}


def lightning(path: Path, state: dict[str, Tensor]) -> BackboneOptions:
    torch.save({"epoch": 3, "global_step": 10, "state_dict": state}, path)
    return BackboneOptions(weights=str(path), image_size=64)


def test_all_tensors_of_an_original_checkpoint_are_loaded(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    counted = {**tensors, "text_transformer.embeddings.position_ids": torch.arange(20)[None]}
    backbone = load_meter(lightning(tmp_path / "meter.ckpt", counted))
    model = backbone.model
    image = "vit_model.visual.transformer.resblocks.1"
    query, key, value = tensors[f"{image}.attn.in_proj_weight"].chunk(3)
    layer = model.image_encoder.encoder.layers[1]
    for ours, theirs in (
        (layer.self_attn.q_proj.weight, query),
        (layer.self_attn.k_proj.weight, key),
        (layer.self_attn.v_proj.weight, value),
        (layer.mlp.fc1.weight, tensors[f"{image}.mlp.c_fc.weight"]),
        (layer.layer_norm2.bias, tensors[f"{image}.ln_2.bias"]),
        (model.text_projection.weight, tensors["cross_modal_text_transform.weight"]),
        (model.image_pooler.dense.bias, tensors["cross_modal_image_pooler.dense.bias"]),
        (
            backbone.blocks[3].crossattention.self.key.bias,
            tensors["cross_modal_image_layers.1.crossattention.self.key.bias"],
        ),
    ):
        assert torch.equal(ours, theirs)
    assert torch.equal(backbone.pretrained_heads["itm_score.fc.weight"], tensors["itm_score.fc.weight"])


@pytest.mark.parametrize("size", [224, 288, 384, 576])
def test_position_embeddings_except_the_class_tokens_are_resized_bicubically(size: int) -> None:
    table = torch.randn(1 + 14 * 14, 6)
    resized = resize_positions(table, size // 16)
    assert resized.shape == (1 + (size // 16) ** 2, 6)
    assert torch.equal(resized[0], table[0])
    if size == 224:
        assert resized is table
    # On every channel by itself, as an image of positions.
    channel = table[1:, 2].view(1, 1, 14, 14)
    expected = F.interpolate(channel, (size // 16, size // 16), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized[1:, 2], expected.flatten())


def test_the_image_size_is_chosen_at_loading(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    options = lightning(tmp_path / "meter.ckpt", tensors)
    backbone = load_meter(BackboneOptions(weights=options.weights, image_size=96))
    assert backbone.processor.image_size == 96
    pooled = backbone(backbone.example_inputs(1, 5, (96, 96), torch.Generator()))
    assert pooled.shape == (1, 256)
    with pytest.raises(UserError, match=r"100 is not a multiple of the patch size 16; try 96"):
        load_meter(BackboneOptions(weights=options.weights, image_size=100))


def test_defaults_are_the_published_sizes(full_size_meter: Callable[..., MeterBackbone]) -> None:
    described = full_size_meter().processor.describe()
    assert described == {"image_size": 384, "patch_size": 16, "text_length": 50, "vocabulary": None}


def test_folder_with_converted_names_gives_the_same_model(
    tmp_path: Path, make_meter: Callable[..., MeterBackbone]
) -> None:
    backbone = make_meter()
    backbone.config.save_pretrained(tmp_path)
    save_file(backbone.model.state_dict(), tmp_path / "model.safetensors")
    loaded = load_meter(BackboneOptions(weights=str(tmp_path), image_size=32))
    assert loaded.digest() == backbone.digest()
    inputs = backbone.example_inputs(2, 5, (32, 32), torch.Generator())
    assert torch.equal(loaded(inputs), backbone(inputs))


def test_a_folder_may_hold_the_originals_file(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    lightning(tmp_path / "meter.ckpt", tensors)
    assert len(load_meter(BackboneOptions(weights=str(tmp_path), image_size=64)).blocks) == 4
    lightning(tmp_path / "other.ckpt", tensors)
    with pytest.raises(UserError, match=r"holds 2 weights files \(meter\.ckpt, other\.ckpt\)"):
        load_meter(BackboneOptions(weights=str(tmp_path)))


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_pickled_code_is_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": Malicious()}, protocol=2))
    torch.save({"state_dict": {}, "extra": Malicious()}, tmp_path / "worse.ckpt")
    for name in ("bad.ckpt", "worse.ckpt"):
        with pytest.raises(UserError, match=name):
            load_meter(BackboneOptions(weights=str(tmp_path / name)))
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("vit_model.visual.conv1.weight"),
            r"not an original METER.*conv1\.weight is missing",
        ),
        (
            lambda s: s.pop("cross_modal_image_layers.1.output.dense.bias"),
            r"1 keys missing \(first: layers\.3\.output\.dense\.bias\)",
        ),
        (lambda s: s.update(stray=torch.zeros(1)), r"1 unknown \(first: stray\)\. Is it a METER checkpoint"),
        (
            lambda s: s.update({"cross_modal_text_pooler.dense.bias": torch.zeros(7)}),
            r"text_pooler\.dense\.bias has shape \(7,\), expected \(128,\)",
        ),
        (
            lambda s: s.update({"text_transformer.embeddings.word_embeddings.weight": torch.zeros(120, 64)}),
            "64 text, 128 image",
        ),
    ],
    ids=["other model", "missing", "unknown", "shape", "widths"],
)
def test_wrong_tensors_are_named(
    tmp_path: Path, tensors: dict[str, Tensor], change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    state = dict(tensors)
    change(state)
    with pytest.raises(UserError, match=message):
        load_meter(lightning(tmp_path / "meter.ckpt", state))


def test_other_mistakes_give_errors_that_name_them(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=r"--weights random"):
        load_meter(BackboneOptions())
    with pytest.raises(UserError, match="no such file or folder"):
        load_meter(BackboneOptions(weights="./nowhere.ckpt"))
    options = lightning(tmp_path / "meter.ckpt", tensors)
    with pytest.raises(UserError, match="text length 19 exceeds its 18 text positions"):
        load_meter(BackboneOptions(weights=options.weights, image_size=64, text_length=19))
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor vocab\.json"):
        load_meter(BackboneOptions(weights=options.weights, tokenizer=str(tmp_path), image_size=64))
    (tmp_path / "vilt").mkdir()
    (tmp_path / "vilt/config.json").write_text(json.dumps({"model_type": "vilt"}))
    save_file({"embeddings.cls_token": torch.zeros(1)}, tmp_path / "vilt/model.safetensors")
    with pytest.raises(UserError, match="model_type is 'vilt', expected 'meter'"):
        load_meter(BackboneOptions(weights=str(tmp_path / "vilt")))
