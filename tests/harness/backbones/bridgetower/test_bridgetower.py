"""BridgeTower against Hugging Face's implementation, and its links under methods."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BridgeTowerConfig, BridgeTowerModel

from harness.backbones.base import BackboneOptions
from harness.backbones.bridgetower.loading import load_bridgetower, read_checkpoint
from harness.backbones.bridgetower.model import BridgeTowerBackbone
from harness.backbones.inputs import Inputs
from harness.errors import UserError
from harness.measure.flops import count_forward
from harness.registry import build_method
from harness.specs import parse_spec
from harness.training.encoder_cache import cached_encoding
from harness.training.encoding_store import Budgets, EncodingStore
from tests.harness.measure.test_meter_flops import Classification

LAYERS, DEPTHS = 4, 3


@pytest.fixture(scope="module")
def reference() -> BridgeTowerModel:
    """Hugging Face's model, small and random: three depths over four-layer encoders of width 64."""
    config = BridgeTowerConfig(
        hidden_size=64,
        num_attention_heads=4,
        num_hidden_layers=DEPTHS,
        text_config={
            "hidden_size": 64,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "vocab_size": 50,
            "max_position_embeddings": 14,
        },
        vision_config={"hidden_size": 64, "num_hidden_layers": LAYERS, "patch_size": 16, "image_size": 32},
    )
    generator = torch.Generator().manual_seed(0)
    model = BridgeTowerModel(config).eval()
    with torch.no_grad():  # its own initialisation is too small to tell layers apart
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.dim() == 1 else 0.15
            noise = scale * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + 1 if name.endswith(("LayerNorm.weight", "norm.weight")) else noise)
    return model


@pytest.fixture(scope="module")
def folder(reference: BridgeTowerModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bridgetower")
    reference.config.save_pretrained(folder)
    save_file(
        {f"bridgetower.{name}": value.clone() for name, value in reference.state_dict().items()},
        folder / "model.safetensors",
    )
    return folder


@pytest.fixture
def backbone(folder: Path) -> BridgeTowerBackbone:
    return load_bridgetower(BackboneOptions(weights=str(folder), image_size=32))


@pytest.fixture
def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 50, (3, 9), generator=generator)
    mask = torch.ones(3, 9, dtype=torch.bool)
    ids[1, 6:], mask[1, 6:] = 1, False
    return Inputs(ids, mask, torch.randn(3, 3, 32, 32, generator=generator))


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def test_pooled_features_equal_hugging_face(
    reference: BridgeTowerModel, backbone: BridgeTowerBackbone, inputs: Inputs
) -> None:
    assert inputs.text_mask is not None
    with torch.no_grad():
        expected = reference(
            inputs.input_ids, attention_mask=inputs.text_mask.long(), pixel_values=inputs.pixels
        )
        assert difference(backbone(inputs), expected.pooler_output) < 1e-5
    assert float(expected.pooler_output.std()) > 0.1


def test_folded_pooled_features_equal_hugging_face(
    reference: BridgeTowerModel, backbone: BridgeTowerBackbone, inputs: Inputs
) -> None:
    build_method(parse_spec("full")).finalize(backbone)
    assert inputs.text_mask is not None
    with torch.no_grad():
        expected = reference(
            inputs.input_ids, attention_mask=inputs.text_mask.long(), pixel_values=inputs.pixels
        )
        assert difference(backbone(inputs), expected.pooler_output) < 1e-5


def test_a_second_image_token_type_is_read(
    reference: BridgeTowerModel, backbone: BridgeTowerBackbone, inputs: Inputs
) -> None:
    backbone.widen_token_types(3)
    with torch.no_grad():
        backbone.model.token_type_embeddings.weight[2] += torch.linspace(-1, 1, 64)
        first = backbone(inputs)
        second = backbone(Inputs(inputs.input_ids, inputs.text_mask, inputs.pixels, image_token_type=2))
    assert difference(first, second) > 1e-3


def test_pairs_equal_the_plain_forward_pass(backbone: BridgeTowerBackbone, inputs: Inputs) -> None:
    assert inputs.text_mask is not None
    pairs = Inputs(inputs.input_ids.repeat(2, 1), inputs.text_mask.repeat(2, 1), inputs.pixels[:2])
    with torch.no_grad():
        assert difference(backbone.forward_pairs(pairs), backbone(pairs.paired())) < 1e-5


def test_cached_encodings_give_the_same_features(backbone: BridgeTowerBackbone, inputs: Inputs) -> None:
    backbone.requires_grad_(False)
    keyed = Inputs(inputs.input_ids, inputs.text_mask, inputs.pixels, image_keys=(b"0", b"1", b"2"))
    store = EncodingStore(Budgets(memory_mib=16, folder=None))
    with torch.no_grad():
        plain = backbone(inputs)
        with cached_encoding(backbone, store):
            filled = backbone(keyed)
            runs: list[str] = []
            for name, half in (
                ("text", backbone.model.text_encoder),
                ("image", backbone.model.image_encoder),
            ):
                half.encoder.register_forward_hook(lambda *call, name=name: runs.append(name))
            assert difference(backbone(keyed), filled) == 0
            assert runs == []
    assert difference(filled, plain) < 1e-5


def test_links_stay_where_blocks_are_skipped(backbone: BridgeTowerBackbone, inputs: Inputs) -> None:
    method = build_method(parse_spec("das[blocks=text.1+image.2]"))
    method.adapt(backbone, torch.Generator().manual_seed(0))
    seen: list[int] = []
    for place, link in enumerate(backbone.model.links):
        link.register_forward_hook(lambda module, arguments, output, place=place: seen.append(place))
    with torch.no_grad():
        trained = backbone(inputs)
        assert seen == [0, 2, 1, 3]
        method.finalize(backbone)
        assert difference(backbone(inputs), trained) < 1e-5


@pytest.mark.parametrize(
    "spec", ["shallow_prompt[tokens=3]", "deep_prompt[tokens=3]", "lora", "adapter", "parallel"]
)
def test_methods_train_every_parameter_and_deploy_the_same(
    spec: str, backbone: BridgeTowerBackbone, inputs: Inputs
) -> None:
    method = build_method(parse_spec(spec))
    method.adapt(backbone, torch.Generator().manual_seed(0))
    backbone(inputs).square().sum().backward()
    trained = [(name, p) for name, p in backbone.named_parameters() if p.requires_grad]
    assert trained
    assert [name for name, p in trained if p.grad is None] == []
    with torch.no_grad():
        for _, parameter in trained:
            parameter += 0.05
        before = backbone(inputs)
        method.finalize(backbone)
        assert difference(backbone(inputs), before) < 1e-4


@pytest.mark.parametrize("spec", ["tome[r=2]", "pumer"])
def test_token_reduction_is_refused(spec: str, backbone: BridgeTowerBackbone) -> None:
    with pytest.raises(UserError, match="their number must stay"):
        build_method(parse_spec(spec)).adapt(backbone, torch.Generator())


@pytest.mark.parametrize(("side", "text", "macs"), [(288, 40, 56.357), (384, 40, 99.540), (384, 50, 101.122)])
def test_parameters_and_macs_at_full_size(side: int, text: int, macs: float) -> None:
    with torch.device("meta"):
        backbone = load_bridgetower(BackboneOptions(weights="random", image_size=side))
    if side == 288:
        roberta_pooler = 768 * 768 + 768  # in the published count, read by no forward pass, not built here
        assert sum(p.numel() for p in backbone.parameters()) + roberta_pooler == 326_347_008
    counts = count_forward(
        Classification(), backbone, torch.nn.Identity(), None, image_size=(side, side), text_length=text
    )
    assert counts.macs_total / 1e9 == pytest.approx(macs, abs=5e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"link_tower_type": "interpolate"}, "link_tower_type is 'interpolate'"),
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"hidden_size": 32}, "widths of encoders and fusion layers differ"),
        ({"text_config": 3}, "not a configuration of BridgeTower"),
    ],
)
def test_other_configurations_are_refused(
    folder: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(UserError, match=message) as caught:
        read_checkpoint(str(tmp_path))
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_folder_without_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"no model.safetensors or pytorch_model.bin"):
        read_checkpoint(str(tmp_path))
