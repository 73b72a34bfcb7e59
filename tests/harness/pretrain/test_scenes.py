"""Targets of a batch, and what a batch depends on."""

from __future__ import annotations

import pytest
import torch

from harness.backbones.base import BackboneOptions
from harness.backbones.meter.processor import MeterProcessor
from harness.pretrain.embedded import EMBEDDED
from harness.pretrain.recipe import Recipe
from harness.pretrain.scenes import IGNORED, CaptionedScenes, mask_id
from tasks.mini.captions import caption_words

CAPTIONED = ("vilt-mini", "meter-mini")
"""The embedded backbones that are pre-trained on captions; `llava-mini` is on dialogues."""


def stream(recipe: Recipe, backbone: str = "vilt-mini", start: int = 0, rank: int = 0) -> CaptionedScenes:
    processor = EMBEDDED[backbone].load(BackboneOptions(weights="random")).processor
    return CaptionedScenes(recipe, processor, start, rank)


@pytest.mark.parametrize("backbone", CAPTIONED)
def test_targets_exist_only_for_masked_words(backbone: str) -> None:
    scenes = stream(Recipe(batch_size=64, processes=1), backbone)
    batch = next(iter(scenes))
    masked = batch.inputs.input_ids == scenes.mask_id
    assert torch.equal(masked, batch.words != IGNORED)
    assert not masked[32:].any()
    single = batch.single != IGNORED
    assert 8 <= int(single.sum()) <= 30
    assert (masked[:32].sum(dim=1)[single] == 1).all()
    for row in torch.nonzero(single).flatten().tolist():
        assert batch.single[row] == batch.words[row].max()
    assert 0 <= int(batch.single[single].min()) <= int(batch.single[single].max()) < len(caption_words())


def test_both_backbones_get_the_same_targets() -> None:
    recipe = Recipe(batch_size=16, processes=1)
    vilt, meter = (next(iter(stream(recipe, backbone))) for backbone in CAPTIONED)
    for name in ("words", "single", "matches", "changed", "patches"):
        assert torch.equal(getattr(vilt, name), getattr(meter, name))


def test_batches_depend_on_seed_step_and_rank_only() -> None:
    recipe = Recipe(steps=3, batch_size=8, processes=2)
    batches = list(stream(recipe))
    assert len(batches) == 3
    assert len(batches[0].inputs) == 4
    later = next(iter(stream(recipe, start=2)))
    assert torch.equal(later.inputs.pixels, batches[2].inputs.pixels)
    other = next(iter(stream(recipe, rank=1)))
    assert not torch.equal(other.inputs.pixels, batches[0].inputs.pixels)


def test_a_vocabulary_without_a_mask_is_refused() -> None:
    processor = EMBEDDED["meter-mini"].load(BackboneOptions(weights="random")).processor
    assert isinstance(processor, MeterProcessor)
    assert processor.tokenizer.id_to_token(mask_id(processor)) == "<mask>"
    processor.tokenizer.token_to_id = lambda token: None  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="no <mask>"):
        mask_id(processor)
