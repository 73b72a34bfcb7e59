"""The embedded retrieval: Karpathy's format, and descriptions that fit only their picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.base import Data
from tasks.mini import vqa
from tasks.mini.descriptions import describe, sample_clauses
from tasks.mini.retrieval import DESCRIPTIONS, Sizes, ensure_retrieval, sample_split
from tasks.mini.scenes import beyond_pretraining, owner_of
from tasks.mini.world import TASK, sample_scene
from tasks.retrieval.task import Retrieval
from tests.support.mini_files import digest, unknown_words

SIZES = Sizes(12, 5, 10)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_retrieval(tmp_path_factory.mktemp("cache"), 0, SIZES)


@pytest.fixture(scope="module")
def data(root: Path) -> Data:
    return Retrieval().load(root)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(root: Path, tmp_path: Path) -> None:
    assert digest(ensure_retrieval(tmp_path, 0, SIZES)) == digest(root)
    assert digest(ensure_retrieval(tmp_path, 1, SIZES)) != digest(root)
    with pytest.raises(ValueError, match="at least 1"):
        Sizes(val_images=0)


def test_the_reader_finds_five_descriptions_of_every_picture(data: Data) -> None:
    for split, images in (("train", 12), ("val", 5), ("test", 10)):
        examples = data.splits[split]  # type: ignore[index]
        assert len(examples) == DESCRIPTIONS * images
        for path in {example.images[0] for example in examples}:
            with Image.open(path) as image:
                assert (image.format, image.size) == ("JPEG", (64, 64))


def test_descriptions_hold_of_their_scene_and_not_all_of_any_other() -> None:
    taken: set[frozenset[object]] = set()
    described = sample_split(25, taken, np.random.default_rng(2))  # type: ignore[arg-type]
    assert len(taken) == 25
    for scene, descriptions in described:
        assert len(set(descriptions)) == DESCRIPTIONS
        clauses = {clause for description in descriptions for clause in description}
        fitting = [other for other, _ in described if all(clause.holds(other) for clause in clauses)]
        assert fitting == [scene]
        assert beyond_pretraining(scene)
        assert owner_of(scene) == "retrieval"


def test_vqa_shares_no_scene_with_retrieval_at_the_default_sizes() -> None:
    asked: set[frozenset[object]] = set()
    for index, (number, _) in enumerate(vqa.Sizes().splits().values()):
        vqa._new_scenes(number, asked, np.random.default_rng([0, index]))  # type: ignore[arg-type]
    described: set[frozenset[object]] = set()
    for index, number in enumerate(Sizes().splits().values()):
        sample_split(number, described, np.random.default_rng([0, index]))  # type: ignore[arg-type]
    assert not asked & described


def test_every_word_is_in_the_embedded_vocabulary() -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, TASK) for _ in range(1500)]
    assert not unknown_words(describe(sample_clauses(scene, rng), rng) for scene in scenes)
