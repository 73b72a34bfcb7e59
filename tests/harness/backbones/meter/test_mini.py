"""The embedded METER: its shape and its vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.backbones.base import BackboneOptions
from harness.backbones.meter.loading import MINI_FOLDER, load_meter_mini
from harness.backbones.meter.model import MeterBackbone
from harness.errors import UserError
from tasks.mini.captions import caption_words


@pytest.fixture(scope="module")
def mini() -> MeterBackbone:
    return load_meter_mini(BackboneOptions(weights="random"))


def test_meter_mini_has_the_architecture_of_meter(mini: MeterBackbone) -> None:
    assert mini.block_names == tuple(
        f"{stream}.{depth}" for stream in ("text", "image") for depth in range(6)
    )
    assert (mini.width, mini.feature_dim) == (128, 256)
    assert mini.processor.describe()["image_size"] == 64
    assert mini.processor.max_text_length == mini.config.text_positions == 40
    assert sum(path.stat().st_size for path in MINI_FOLDER.iterdir()) < 15 * 2**20


def test_words_of_captions_are_one_token_each(mini: MeterBackbone) -> None:
    words = caption_words()
    tokens = mini.processor.tokenize(words)
    assert all(len(sequence) == 3 for sequence in tokens)
    assert len({sequence[1] for sequence in tokens}) == len(words)
    assert {(sequence[0], sequence[2]) for sequence in tokens} == {(0, 2)}  # <s> and </s>, as RoBERTa's
    assert mini.processor.tokenizer.token_to_id("<pad>") == mini.processor.pad_id == 1


def test_other_words_become_pieces(mini: MeterBackbone) -> None:
    tokenizer = mini.processor.tokenizer
    text = "What's on the Zymurgist's 3rd naïve café-chair?"
    (ids,) = mini.processor.tokenize([text])
    assert tokenizer.token_to_id("<unk>") not in ids
    assert max(ids) < mini.config.vocab_size == tokenizer.get_vocab_size()
    pieces = [tokenizer.id_to_token(number) for number in ids[1:-1]]
    assert "".join(piece.removeprefix("##") for piece in pieces) == text.lower().replace(" ", "").replace(
        "ï", "i"
    ).replace("é", "e")
    assert len(mini.processor.tokenize(["zymurgist " * 40])[0]) == 40


def test_random_weights_are_the_same_every_time(mini: MeterBackbone) -> None:
    again = load_meter_mini(BackboneOptions(weights="random"))
    assert again.digest() == mini.digest()
    assert not again.pretrained_heads


def test_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json in this folder; .*harness pretrain meter-mini"):
        load_meter_mini(BackboneOptions(weights=str(tmp_path)))
    (tmp_path / "config.json").write_bytes((MINI_FOLDER / "config.json").read_bytes())
    with pytest.raises(
        UserError, match=r"no model\.safetensors in this folder; .*harness pretrain meter-mini"
    ):
        load_meter_mini(BackboneOptions(weights=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "vilt"}')
    with pytest.raises(UserError, match="model_type is 'vilt', expected 'meter'"):
        load_meter_mini(BackboneOptions(weights=str(tmp_path)))
