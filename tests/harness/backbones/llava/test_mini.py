"""The embedded LLaVA: its shape, its vocabulary, and that it answers what it was pre-trained on."""

from __future__ import annotations

import json

import pytest
import torch

from harness.backbones.base import BackboneOptions
from harness.backbones.llava.loading import MINI_FOLDER, load_llava_mini
from harness.backbones.llava.model import LlavaBackbone
from harness.pretrain.dialogues import DialogueModel, load_with_image_encoder
from harness.pretrain.loop import evaluate
from harness.pretrain.recipe import LLAVA_STAGES
from tasks.mini.captions import caption_words
from tasks.scienceqa.files import LETTERS


@pytest.fixture(scope="module")
def mini() -> LlavaBackbone:
    return load_llava_mini(BackboneOptions())


def test_llava_mini_has_the_architecture_of_llava(mini: LlavaBackbone) -> None:
    assert mini.block_names == tuple(f"joint.{depth}" for depth in range(8))
    assert (mini.width, mini.feature_dim) == (128, 128)
    assert (mini.image_end - mini.image_start, mini.processor.max_text_length) == (16, 64)
    assert sum(path.stat().st_size for path in MINI_FOLDER.iterdir()) < 10 * 2**20


def test_words_of_captions_and_letters_of_options_are_one_token_each(mini: LlavaBackbone) -> None:
    words = [*caption_words(), *(letter.lower() for letter in LETTERS)]
    answers = [mini.processor.answer_ids(word) for word in words]
    assert {len(ids) for ids in answers} == {2}  # the word and the token that ends an answer
    assert len({ids[0] for ids in answers}) == len(set(words))
    assert [mini.processor.answer_text(ids) for ids in answers] == words


def test_pre_training_starts_from_the_image_encoder_of_meter_mini() -> None:
    random, begun = (
        load(BackboneOptions(weights="random")) for load in (load_llava_mini, load_with_image_encoder)
    )
    trained = load_llava_mini(BackboneOptions())
    towers = [each.model.model.vision_tower.state_dict() for each in (random, begun, trained)]
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(towers[0][name], towers[1][name])
    torch.testing.assert_close(towers[1][name], towers[2][name], atol=1e-3, rtol=0)


def test_it_answers_as_recorded_on_new_scenes(mini: LlavaBackbone) -> None:
    recorded = json.loads((MINI_FOLDER / "pretraining.json").read_text())["held_out"]
    found = evaluate(DialogueModel(mini), LLAVA_STAGES[-1], batches=4)  # of the 32 recorded ones
    assert found["attribute_accuracy"] == pytest.approx(recorded["attribute_accuracy"], abs=15)
    assert found["attribute_accuracy"] > 60
