"""Pre-training: what is asked of a batch, learning, processes that agree, and going on after a stop."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness.backbones.base import BackboneOptions
from harness.backbones.vilt_loading import MINI_FOLDER, load_vilt_mini
from harness.errors import UserError
from harness.pretrain import (
    IGNORED,
    STAGES,
    CaptionedScenes,
    Recipe,
    pretrain,
    pretrain_in_stages,
)
from tasks.mini.captions import caption_words

BUILD = partial(load_vilt_mini, BackboneOptions(weights="random"))
TINY = Recipe(steps=4, batch_size=8, processes=1)


def stream(recipe: Recipe, start: int = 0, rank: int = 0) -> CaptionedScenes:
    processor = BUILD().processor
    return CaptionedScenes(recipe, processor, processor.tokenizer.token_to_id("[MASK]"), start, rank)


def test_a_batch_asks_for_masked_words_only_where_they_are_masked() -> None:
    scenes = stream(Recipe(batch_size=64, processes=1))
    mask_id = scenes.mask_id
    batch = next(iter(scenes))
    masked = batch.inputs.input_ids == mask_id
    assert torch.equal(masked, batch.words != IGNORED)
    assert not masked[32:].any()
    single = batch.single != IGNORED
    assert 8 <= int(single.sum()) <= 30
    assert (masked[:32].sum(dim=1)[single] == 1).all()
    for row in torch.nonzero(single).flatten().tolist():
        assert batch.single[row] == batch.words[row].max()
    assert 0 <= int(batch.single[single].min()) <= int(batch.single[single].max()) < len(caption_words())


def test_batches_depend_on_seed_step_and_rank_only() -> None:
    recipe = Recipe(steps=3, batch_size=8, processes=2)
    batches = list(stream(recipe))
    assert len(batches) == 3
    assert len(batches[0].inputs) == 4
    later = next(iter(stream(recipe, start=2)))
    assert torch.equal(later.inputs.pixels, batches[2].inputs.pixels)
    other = next(iter(stream(recipe, rank=1)))
    assert not torch.equal(other.inputs.pixels, batches[0].inputs.pixels)


@pytest.mark.timeout(300)
def test_going_on_gives_what_one_run_gives(tmp_path: Path) -> None:
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
def test_a_stage_goes_on_from_the_one_before(tmp_path: Path) -> None:
    copied = [MINI_FOLDER / name for name in ("config.json", "vocab.txt")]
    stages = (TINY, Recipe(steps=1, batch_size=8, processes=1, learning_rate=1e-9, weight_decay=0.0))
    report = pretrain_in_stages(load_vilt_mini, stages, tmp_path, copied)
    assert [stage["recipe"]["steps"] for stage in report["stages"]] == [4, 1]
    first, last = (load_file(path / "model.safetensors") for path in (tmp_path / "stage-1", tmp_path))
    name = "encoder.layer.3.attention.attention.query.weight"
    torch.testing.assert_close(first[name], last[name], atol=1e-3, rtol=0)
    fresh = BUILD().model.state_dict()[name]
    assert (first[name].float() - fresh).abs().max() > 1e-3
    assert (
        load_vilt_mini(BackboneOptions(weights=str(tmp_path))).model.state_dict()[name].shape == fresh.shape
    )


def test_the_shipped_weights_come_from_the_shipped_recipe() -> None:
    report = json.loads((MINI_FOLDER / "pretraining.json").read_text())
    last = report["stages"][-1]
    assert Recipe(**last["recipe"]) == STAGES[-1]
    assert last["held_out"] == report["held_out"]
    assert np.isfinite(list(report["held_out"].values())).all()
