from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness.backbones.meter.processor import MEAN, STANDARD_DEVIATION, MeterProcessor
from harness.errors import UserError

VOCABULARY = Path("../shared/data/tokenizers/roberta-base")


def processor(vocabulary: Path | None = None, text_length: int = 50) -> MeterProcessor:
    return MeterProcessor(vocabulary, 32, 16, text_length)


def test_texts_become_robertas_tokens() -> None:
    if not VOCABULARY.is_dir():
        pytest.skip(f"{VOCABULARY} is not here")
    # "Hello world" is 31414 232 in RoBERTa's vocabulary; <s> is 0 and </s> 2.
    assert processor(VOCABULARY).tokenize(["Hello world", ""]) == [[0, 31414, 232, 2], [0, 2]]
    (cut,) = processor(VOCABULARY, text_length=6).tokenize(["a b c d e f g h i"])
    assert len(cut) == 6
    assert (cut[0], cut[-1]) == (0, 2)


def test_tokenizer_json_equals_vocabulary_and_merges(tmp_path: Path) -> None:
    if not VOCABULARY.is_dir():
        pytest.skip(f"{VOCABULARY} is not here")
    pairs = processor(VOCABULARY)
    pairs.tokenizer.no_truncation()
    pairs.tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = ["What colour is the man's hat?", "  two  blanks, naïve café"]
    expected = pairs.tokenize(texts)
    assert processor(tmp_path).tokenize(texts) == expected
    assert processor(tmp_path / "tokenizer.json").tokenize(texts) == expected


def test_wrong_vocabulary_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--tokenizer"):
        processor().tokenize(["x"])
    with pytest.raises(UserError, match=r"neither tokenizer\.json"):
        processor(tmp_path).tokenize(["x"])
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as a vocabulary"):
        processor(tmp_path).tokenize(["x"])
    other = tmp_path / "other"
    other.mkdir()
    (other / "vocab.json").write_text('{"a": 0}')
    (other / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="no <s> or </s>"):
        processor(other).tokenize(["a"])


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (33, 100), (5, 9)])
def test_images_are_cropped_to_the_central_square(size: tuple[int, int]) -> None:
    assert processor().resize(Image.new("RGB", size)).shape == (32, 32, 3)


@pytest.mark.parametrize("size", [(2, 20_000), (20_000, 2)])
def test_a_long_strip_is_not_scaled_as_a_whole(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def noted(image: Image.Image, size: tuple[int, int], *rest: Any) -> Image.Image:
        made.append(size)
        return resize(image, size, *rest)

    monkeypatch.setattr(Image.Image, "resize", noted)
    width, height = size
    along = np.minimum(np.arange(20_000) // 40, 255).astype(np.uint8)
    rows = np.broadcast_to(along[None, :] if width > height else along[:, None], (height, width))
    found = processor().resize(Image.fromarray(rows.copy()).convert("RGB"))
    side = processor().image_size
    assert made == [(side, side)]
    assert found.shape == (side, side, 3)
    assert set(np.unique(found)) <= {249, 250}  # the values at the middle of the strip


def test_crop_is_central_and_a_fitting_image_is_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(32, 64, 3), dtype=np.uint8)
    assert np.array_equal(processor().resize(Image.fromarray(pixels)), pixels[:, 16:48])


def test_pixels_are_normalised_by_clips_mean_and_deviation() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    found = processor().normalize(images)[..., 0, 0]
    expected = torch.tensor(
        [[(value - m) / s for m, s in zip(MEAN, STANDARD_DEVIATION, strict=True)] for value in (0, 1)]
    )
    torch.testing.assert_close(found, expected)


def test_image_size_must_be_a_multiple_of_the_patch_size() -> None:
    with pytest.raises(UserError, match="try 384"):
        MeterProcessor(None, 390, 16, 40)


def test_description_contains_everything_that_changes_the_result(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    described = processor(tmp_path).describe()
    assert described["vocabulary"] != processor().describe()["vocabulary"] is None
    assert {key: described[key] for key in ("image_size", "text_length")} == {
        "image_size": 32,
        "text_length": 50,
    }
