"""Pre-training of the fusion on a tiny Karpathy file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from harness.backbones.base import BackboneOptions
from harness.backbones.meter.assembled import AssembledBackbone
from harness.backbones.meter.assembling import assemble_encoders
from harness.backbones.meter.encoders import features_of
from harness.backbones.meter.loading import load_meter
from harness.cli import app
from harness.errors import UserError
from harness.pretrain.captions import Features, draw_pairs, read_captioned
from harness.pretrain.fusion import (
    FusionModel,
    FusionRecipe,
    draw_false,
    hardness_at,
    mask_token,
    pretrain_fusion,
    rate_at,
)
from tasks.data.images import load_rgb, to_pixels
from tests.support.tiny_encoders import IMAGE, TEXT, save_encoder

SENTENCES = ("a dog runs", "the cat sits", "a cat on the dog")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two encoders and a Karpathy file of six training and two validation images."""
    folder = tmp_path_factory.mktemp("fusion")
    save_encoder(TEXT["bert"], folder / "text")
    save_encoder(IMAGE["convnext"], folder / "image")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    entries = []
    for number in range(8):
        pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        sentences = [{"sentid": 3 * number + k, "raw": SENTENCES[(number + k) % 3]} for k in range(3)]
        split = "train" if number < 6 else "val"
        entries.append({"imgid": number, "filename": f"{number}.png", "split": split, "sentences": sentences})
    (folder / "dataset_tiny.json").write_text(json.dumps({"images": entries}))
    return folder


def assembled(place: Path) -> AssembledBackbone:
    options = BackboneOptions(text_encoder=str(place / "text"), image_encoder=str(place / "image"))
    backbone = assemble_encoders(options, width=8, depths=1)
    assert backbone is not None
    return backbone


def test_features_are_those_of_the_encoder(place: Path, tmp_path: Path) -> None:
    backbone = assembled(place)
    captioned = read_captioned(place / "dataset_tiny.json", backbone, "train")
    assert captioned.tokens[1][0] == [2, 6, 8, 10, 3]  # [CLS] the cat sits [SEP]
    found = Features(backbone, captioned.paths, tmp_path)[[4, 1]]
    pixels = torch.stack([to_pixels(load_rgb(captioned.paths[k]), backbone.processor) for k in (4, 1)])
    with torch.no_grad():
        expected = features_of(backbone.model.image_encoder, backbone.processor.normalize(pixels))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)  # kept in half precision
    (kept,) = tmp_path.rglob("*.npy")
    kept.write_bytes(kept.read_bytes()[:-2] + b"\x00\x7c")  # the last value becomes infinite
    assert torch.isinf(Features(backbone, captioned.paths, tmp_path)[[5]][0, -1, -1])  # it was read, not made


def test_words_are_masked_and_nothing_else(place: Path) -> None:
    backbone = assembled(place)
    captioned = read_captioned(place, backbone, "train")
    pairs = draw_pairs(captioned, 6, 0.5, mask_token(backbone), 0, np.random.default_rng(0))
    assert sorted(pairs.images) == [0, 1, 2, 3, 4, 5]
    assert torch.equal(pairs.masked[~pairs.hidden], pairs.ids[~pairs.hidden])
    assert (pairs.masked[pairs.hidden] == 4).all()
    assert pairs.hidden.any(dim=1).all()
    assert (pairs.ids[pairs.hidden] > 4).all()  # words, not [CLS], [SEP] or padding


def test_only_fusion_projections_and_heads_train(place: Path) -> None:
    model = FusionModel(assembled(place))
    pairs = draw_pairs(read_captioned(place, model.backbone, "train"), 6, 0.5, 4, 0, np.random.default_rng(0))
    loss, figures = model.losses(pairs, torch.randn(6, 5, 20), torch.Generator().manual_seed(0))
    loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == set(model.trained())
    assert not any("_encoder" in name for name in trained)
    assert sum(v for k, v in figures.items() if k.endswith("loss")) == pytest.approx(loss.item(), abs=1e-4)


def test_the_contrast_trains_the_projections_alone(place: Path) -> None:
    model = FusionModel(assembled(place))
    pairs = draw_pairs(read_captioned(place, model.backbone, "train"), 6, 0.5, 4, 0, np.random.default_rng(0))
    features, generator = torch.randn(6, 5, 20), torch.Generator()
    loss, figures = model.losses(pairs, features, generator, hardness=None)
    loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name.removeprefix("backbone.model.").split(".")[0] for name in trained} == {
        *("text_projection", "image_projection", "log_scale")
    }
    assert figures == {name: model.losses(pairs, features, generator)[1][name] for name in figures}


def test_false_pairs_are_the_more_similar_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.full((8, 8), -100.0).fill_diagonal_(100.0)
    similarity[4, 1] = similarity[5, 7] = similarity[2, 6] = similarity[0, 7] = 0.0
    captions, images = draw_false(similarity, generator)
    assert captions.tolist() == [0, 1, 2, 3, 4, 5, 2, 0]
    assert images.tolist() == [0, 1, 2, 3, 1, 7, 6, 7]
    drawn = [draw_false(torch.zeros(8, 8), generator) for _ in range(200)]
    assert {int(images[4]) for _, images in drawn} == {0, 1, 2, 3, 5, 6, 7}
    assert {int(captions[7]) for captions, _ in drawn} == {0, 1, 2, 3, 4, 5, 6}


def test_rate_and_hardness_start_anew_behind_the_contrast() -> None:
    recipe = FusionRecipe(steps=30, contrast_steps=10, warmup=0.2)
    assert [hardness_at(step, recipe) for step in (0, 9, 10, 20)] == [None, None, 0.0, 0.5]
    assert [rate_at(step, recipe) for step in (0, 1, 2, 10, 12, 14)] == pytest.approx([0, 0.5, 1, 0, 0.5, 1])
    assert rate_at(22, recipe) == pytest.approx(0.505)  # halfway down to 1 %


def test_interrupted_run_resumes_to_the_same_weights(place: Path, tmp_path: Path) -> None:
    recipe = FusionRecipe(6, 4, contrast_steps=3, contrast_batch_size=5, learning_rate=1e-2)

    def stop(step: int, figures: dict[str, float]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    whole = pretrain_fusion(assembled(place), place, recipe, tmp_path / "whole", save_every=2)
    with pytest.raises(KeyboardInterrupt):
        pretrain_fusion(assembled(place), place, recipe, tmp_path / "parts", stop, save_every=2)
    between = load_file(tmp_path / "parts" / "model.safetensors")
    resumed = pretrain_fusion(assembled(place), place, recipe, tmp_path / "parts", save_every=2)
    assert resumed["held_out"] == whole["held_out"]
    assert (
        pretrain_fusion(assembled(place), place, recipe, tmp_path / "parts", stop) == resumed
    )  # no further step
    with (tmp_path / "whole" / "curve.csv").open() as curve:
        assert curve.readline().startswith("step,seconds,contrast_loss,word_loss,match_loss,")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("parts", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not torch.equal(between["layers.0.output.dense.weight"], ours["layers.0.output.dense.weight"])
    backbone = load_meter(BackboneOptions(weights=str(tmp_path / "whole")))
    assert set(backbone.pretrained_heads) == {"itm_score.fc.weight", "itm_score.fc.bias"}
    before = assembled(place).model.state_dict()
    for key, tensor in backbone.model.state_dict().items():
        frozen = key.startswith(("text_encoder.", "image_encoder."))
        assert torch.equal(tensor, before[key]) == (frozen or torch.equal(theirs[key], before[key])), key


def test_checkpoint_of_another_run_is_refused(place: Path, tmp_path: Path) -> None:
    def stop(step: int, figures: dict[str, float]) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain_fusion(assembled(place), place, FusionRecipe(3, 4, 0), tmp_path, stop, save_every=1)
    with pytest.raises(UserError, match=r"checkpoint\.pt: belongs to another run"):
        pretrain_fusion(assembled(place), place, FusionRecipe(4, 4, 0), tmp_path)


def test_learned_pairs_are_told_apart(place: Path, tmp_path: Path) -> None:
    """Six images are learned by heart: losses fall far below those of guessing."""
    figures: list[dict[str, float]] = []
    recipe = FusionRecipe(steps=60, batch_size=6, contrast_steps=0, learning_rate=1e-2)
    pretrain_fusion(
        assembled(place), place, recipe, tmp_path, lambda step, found: figures.append(found), save_every=1000
    )
    assert figures[0]["word_loss"] > 2.0
    assert np.mean([each["word_loss"] for each in figures[-10:]]) < 1.8


def test_command_puts_encoders_into_a_folder(place: Path, tmp_path: Path) -> None:
    words = [
        "pretrain",
        "meter",
        "--text-encoder",
        str(place / "text"),
        "--image-encoder",
        str(place / "image"),
    ]
    shown = CliRunner().invoke(
        app, [*words, "--steps", "0", "--width", "8", "--depths", "1", "--output", str(tmp_path)]
    )
    assert shown.exit_code == 0, shown.output
    assert load_meter(BackboneOptions(weights=str(tmp_path))).digest() == assembled(place).digest()
    shown = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "x")])
    assert shown.exit_code != 0
    few = [*words, "--data-root", str(place), "--steps", "5"]
    with pytest.raises(UserError, match=r"--contrast-steps: 300 of 5 steps"):
        CliRunner().invoke(app, few, catch_exceptions=False)
    with pytest.raises(UserError, match="--width: is for meter; the recipe of vilt-mini is fixed"):
        CliRunner().invoke(app, ["pretrain", "vilt-mini", "--width", "8"], catch_exceptions=False)
