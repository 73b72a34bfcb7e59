"""Agreement of processes, stages, resuming, and the recipe of the shipped weights."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness.backbones.base import BackboneOptions
from harness.backbones.vilt.loading import load_vilt_mini
from harness.errors import UserError
from harness.pretrain.embedded import EMBEDDED
from harness.pretrain.loop import evaluate, pretrain, pretrain_in_stages
from harness.pretrain.model import PretrainingModel
from harness.pretrain.recipe import Recipe
from tasks.mini.captions import caption_words

BUILD = partial(load_vilt_mini, BackboneOptions(weights="random"))
TINY = Recipe(steps=4, batch_size=8, processes=1)


@pytest.mark.timeout(300)
def test_resumed_training_equals_uninterrupted_training(tmp_path: Path) -> None:
    whole = pretrain(BUILD, TINY, tmp_path / "whole")

    def stop(step: int, figures: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(BUILD, TINY, tmp_path / "twice", stop, checkpoint_every=2)
    with pytest.raises(UserError, match="another recipe"):
        pretrain(BUILD, Recipe(steps=5, batch_size=8, processes=1), tmp_path / "twice")
    resumed = pretrain(BUILD, TINY, tmp_path / "twice")
    assert resumed["held_out"] == whole["held_out"]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "twice"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    report = json.loads((tmp_path / "whole" / "pretraining.json").read_text())
    assert report["scenes"] == 32
    assert not (tmp_path / "whole" / "checkpoint.pt").exists()


@pytest.mark.timeout(300)
def test_processes_average_their_gradients(tmp_path: Path) -> None:
    recipe = Recipe(steps=2, batch_size=8, processes=2)
    first, again = (pretrain(BUILD, recipe, tmp_path / name) for name in ("a", "b"))
    assert first["held_out"] == again["held_out"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("vilt-mini", "encoder.layer.3.attention.attention.query.weight"),
        ("meter-mini", "layers.3.crossattention.self.query.weight"),
    ],
)
def test_stage_starts_from_the_previous_one(tmp_path: Path, backbone: str, name: str) -> None:
    mini = EMBEDDED[backbone]
    copied = [mini.folder / file for file in mini.copied]
    stages = (TINY, Recipe(steps=1, batch_size=8, processes=1, learning_rate=1e-9, weight_decay=0.0))
    report = pretrain_in_stages(mini.load, stages, tmp_path, copied)
    assert [stage["recipe"]["steps"] for stage in report["stages"]] == [4, 1]
    first, last = (load_file(path / "model.safetensors") for path in (tmp_path / "stage-1", tmp_path))
    torch.testing.assert_close(first[name], last[name], atol=1e-3, rtol=0)
    fresh = mini.load(BackboneOptions(weights="random")).state_dict()[f"model.{name}"]
    assert (first[name].float() - fresh).abs().max() > 1e-3
    made = mini.load(BackboneOptions(weights=str(tmp_path)))
    assert torch.equal(made.state_dict()[f"model.{name}"], last[name].float())
    assert set(made.pretrained_heads) == {"itm_score.fc.weight", "itm_score.fc.bias"}


@pytest.mark.parametrize("backbone", list(EMBEDDED))
def test_shipped_weights_were_made_by_the_shipped_recipe(backbone: str) -> None:
    report = json.loads((EMBEDDED[backbone].folder / "pretraining.json").read_text())
    last = report["stages"][-1]
    assert Recipe(**last["recipe"]) == EMBEDDED[backbone].stages[-1]
    assert last["held_out"] == report["held_out"]
    assert np.isfinite(list(report["held_out"].values())).all()


@pytest.mark.parametrize(("backbone", "least"), [("vilt-mini", 70), ("meter-mini", 50)])
def test_the_shipped_matching_head_is_as_good_as_recorded(backbone: str, least: float) -> None:
    mini = EMBEDDED[backbone]
    shipped = mini.load(BackboneOptions())
    model = PretrainingModel(shipped, len(caption_words()))
    with torch.no_grad():
        model.itm_score.weight.copy_(shipped.pretrained_heads["itm_score.fc.weight"])
        model.itm_score.bias.copy_(shipped.pretrained_heads["itm_score.fc.bias"])
    recorded = json.loads((mini.folder / "pretraining.json").read_text())["held_out"]["match_accuracy"]
    found = evaluate(model, mini.stages[-1], batches=8)["match_accuracy"]  # of the 32 recorded ones
    assert found == pytest.approx(recorded, abs=8)  # four standard deviations for 256 of 1,024 pairs
    assert found > least
