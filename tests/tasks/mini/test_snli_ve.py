"""The embedded SNLI-VE: official files, balanced so that one modality alone is at chance."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.base import Data
from tasks.mini.hypotheses import LABELS, sample_hypothesis
from tasks.mini.scenes import beyond_pretraining, owner_of, sample_theme
from tasks.mini.snli_ve import Sizes, ensure_snli_ve, sample_set
from tasks.snli_ve.files import LABELS as OFFICIAL_LABELS
from tasks.snli_ve.task import SNLIVE
from tests.support.mini_files import best_guess, digest, unknown_words

SIZES = Sizes(8, 3, 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_snli_ve(tmp_path_factory.mktemp("cache"), 0, SIZES)


@pytest.fixture(scope="module")
def data(root: Path) -> Data:
    return SNLIVE().load(root)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(root: Path, tmp_path: Path) -> None:
    assert digest(ensure_snli_ve(tmp_path, 0, SIZES)) == digest(root)
    assert digest(ensure_snli_ve(tmp_path, 1, SIZES)) != digest(root)


def test_the_reader_finds_every_example_with_its_picture(data: Data) -> None:
    assert {split: len(examples) for split, examples in data.splits.items()} == {
        "train": 8 * 9,
        "val": 3 * 9,
        "test": 4 * 9,
    }
    assert LABELS == OFFICIAL_LABELS
    for examples in data.splits.values():
        assert len({example.group for example in examples}) * 3 == len(examples)
        for path in {example.images[0] for example in examples}:
            with Image.open(path) as image:
                assert (image.format, image.size) == ("JPEG", (64, 64))


def test_lines_have_the_official_fields(root: Path) -> None:
    for line in (root / "snli_ve_dev.jsonl").read_text().splitlines():
        entry = json.loads(line)
        assert entry["captionID"] == f"{entry['Flickr30K_ID']}.jpg#0"
        assert entry["pairID"].startswith(entry["captionID"])
        assert entry["pairID"][-1] == entry["gold_label"][0]
        assert entry["annotator_labels"] == [entry["gold_label"]]
        assert entry["sentence1"]


def test_the_best_guess_from_text_alone_or_picture_alone_is_at_chance(data: Data) -> None:
    for examples in data.splits.values():
        sets = [str((int(example.group) - 1) // 3) for example in examples]
        texts = [(of_set, example.text) for of_set, example in zip(sets, examples, strict=True)]
        assert best_guess(examples, texts) == pytest.approx(100 / 3)
        assert best_guess(examples, [example.group for example in examples]) == pytest.approx(100 / 3)


def test_labels_are_those_that_the_scenes_give_the_hypotheses() -> None:
    rng = np.random.default_rng(1)
    taken: set[frozenset[object]] = set()
    kinds: Counter[str] = Counter()
    for count in range(1, 13):
        scenes, chosen = sample_set(3, taken, rng)  # type: ignore[arg-type]
        assert len(taken) == 3 * count
        for hypothesis, pattern in chosen:
            kinds[hypothesis.kind] += 1
            assert sorted(pattern) == [0, 1, 2]
            assert [hypothesis.label(scene) for scene in scenes] == list(pattern)
        assert all(beyond_pretraining(scene) and owner_of(scene) == "snli_ve" for scene in scenes)
    assert len(kinds) >= 5


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="multiple of 3"):
        Sizes(hypotheses=4)
    with pytest.raises(ValueError, match="at least 1"):
        Sizes(test_sets=0)


def test_every_word_is_in_the_embedded_vocabulary() -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_hypothesis(sample_theme(4, 4, rng), rng) for _ in range(4000)]
    assert not unknown_words(text for hypothesis in drawn for text in hypothesis.wordings())
