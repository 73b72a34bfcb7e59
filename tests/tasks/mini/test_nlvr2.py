"""The embedded NLVR2: official files, balanced so that one modality alone is at chance."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.errors import UserError
from tasks.base import Data
from tasks.mini import world
from tasks.mini.captions import caption_words
from tasks.mini.folder import FINISHED
from tasks.mini.nlvr2 import PAIRS, Sizes, _statement, ensure_nlvr2, reworded, sample_set
from tasks.mini.pairs import Quantified
from tasks.mini.scenes import OWNERS, beyond_pretraining, owner_of, sample_theme
from tasks.nlvr2.files import consistency_group
from tasks.nlvr2.task import NLVR2
from tests.support.mini_files import best_guess, digest, unknown_words

SIZES = Sizes(6, 2, 3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_nlvr2(tmp_path_factory.mktemp("cache"), 0, SIZES)


@pytest.fixture(scope="module")
def data(root: Path) -> Data:
    return NLVR2().load(root)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(root: Path, tmp_path: Path) -> None:
    assert digest(ensure_nlvr2(tmp_path, 0, SIZES)) == digest(root)
    assert digest(ensure_nlvr2(tmp_path, 1, SIZES)) != digest(root)


def test_a_folder_is_named_by_its_content_and_must_be_complete(tmp_path: Path) -> None:
    made = ensure_nlvr2(tmp_path, 0, Sizes(1, 1, 1))
    assert ensure_nlvr2(tmp_path, 0, Sizes(1, 1, 1)) == made
    assert ensure_nlvr2(tmp_path, 0, Sizes(1, 1, 2)) != made
    (made / FINISHED).unlink()
    with pytest.raises(UserError, match="delete"):
        ensure_nlvr2(tmp_path, 0, Sizes(1, 1, 1))
    with pytest.raises(ValueError, match="at least 1"):
        Sizes(train_sets=0)


def test_the_reader_finds_every_example_with_its_two_pictures(data: Data) -> None:
    assert {split: len(examples) for split, examples in data.splits.items()} == {
        "train": 6 * 16,
        "val": 2 * 16,
        "test": 3 * 16,
    }
    for examples in data.splits.values():
        for example in examples:
            assert len(set(example.images)) == 2
            for path in example.images:
                with Image.open(path) as image:
                    assert image.size == (64, 64)


def test_a_consistency_group_is_one_sentence_with_both_labels(data: Data) -> None:
    for examples in data.splits.values():
        groups = Counter(consistency_group(example.id) for example in examples)
        assert set(groups.values()) == {PAIRS}
        for group in groups:
            members = [example for example in examples if consistency_group(example.id) == group]
            assert len({example.text for example in members}) == 1
            assert Counter(example.target.index for example in members) == {0: 2, 1: 2}


def test_the_best_guess_from_text_alone_or_pictures_alone_is_at_chance(data: Data) -> None:
    for examples in data.splits.values():
        groups = [consistency_group(example.id) for example in examples]
        assert best_guess(examples, groups) == 50
        assert best_guess(examples, [example.images for example in examples]) == 50


def test_the_sentence_with_one_picture_does_not_decide() -> None:
    """The best guess from whether the clause holds of one picture is right for at most 3 of the 4 pairs."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(8):
        pairs, statements = sample_set(set(), rng)
        for statement, pattern in statements:
            if not isinstance(statement, Quantified) or statement.quantifier in ("left", "right"):
                continue
            for side in (0, 1):
                seen = [statement.clause.holds(pair[side]) for pair in pairs]
                right = sum(
                    max(
                        Counter(label for label, s in zip(pattern, seen, strict=True) if s == value).values(),
                        default=0,
                    )
                    for value in (True, False)
                )
                assert right <= 3
                found += 1
    assert found > 10


def test_labels_match_the_scenes_and_the_scenes_belong_to_the_task() -> None:
    rng = np.random.default_rng(1)
    taken: set[frozenset[object]] = set()
    for count in (1, 2, 3):
        pairs, statements = sample_set(taken, rng)  # type: ignore[arg-type]
        assert len(taken) == 8 * count
        for statement, pattern in statements:
            assert [statement.truth(*pair) for pair in pairs] == [bool(label) for label in pattern]
        for scene in (scene for pair in pairs for scene in pair):
            assert beyond_pretraining(scene)
            assert owner_of(scene) == OWNERS[0] == "nlvr2"


def test_every_word_is_in_the_embedded_vocabulary() -> None:
    rng = np.random.default_rng(0)
    drawn = [_statement(sample_theme(3, 3, rng), rng) for _ in range(4000)]
    texts = {reworded(text, rng) for statement in drawn for text in statement.wordings()}
    assert not unknown_words(texts)
    words = {word for text in texts for word in text.split()}
    assert {"painted", "colored", "looks", "appears", "object", "objects"} <= words - set(caption_words())


def test_colors_and_sizes_follow_the_noun() -> None:
    rng = np.random.default_rng(0)
    said = {reworded("no image contains a small orange thing", rng) for _ in range(200)}
    assert len(said) == 9
    assert "no image contains an object painted orange that looks small" in said
    drawn = [_statement(sample_theme(3, 3, rng), rng) for _ in range(500)]
    for text in (text for statement in drawn for text in statement.wordings()):
        words = reworded(text, rng).split()
        attributes = {*world.COLORS, *world.SIZES}
        before = {a for a, b in itertools.pairwise(words) if b in attributes}
        assert before <= {"painted", "colored", "looks", "appears", "of"}
        assert sorted(attributes & set(words)) == sorted(attributes & set(text.split()))
        assert not {("a", "object"), ("an", "circle")} & set(itertools.pairwise(words))
