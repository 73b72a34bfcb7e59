import numpy as np

from tasks.mini.captions import caption, caption_words, false_caption, falsify, join, true_clauses
from tasks.mini.world import PRETRAINING, RELATIONS, TASK, sample_scene

# Changing one content word may also change the number of its verb and noun, and its article.
AGREEMENT = {"are": "is", "an": "a", "crosses": "cross"}
SCENES = 300


def plain(text: str) -> list[str]:
    for relation in RELATIONS:
        text = text.replace(relation, relation.replace(" ", "-"))
    words = [AGREEMENT.get(word, word) for word in text.split()]
    return [word if word in ("cross", "is") else word.removesuffix("s") for word in words]


def test_captions_hold_and_false_captions_fail_in_one_clause() -> None:
    rng = np.random.default_rng(0)
    for _ in range(SCENES):
        scene = sample_scene(rng, PRETRAINING)
        clauses = true_clauses(scene, rng)
        assert all(clause.holds(scene) for clause in clauses)
        changed = falsify(clauses, scene, rng)
        assert changed is not None
        assert [clause.fails(scene) for clause in changed] == [
            a != b for a, b in zip(clauses, changed, strict=True)
        ]
        assert sum(clause.fails(scene) for clause in changed) == 1


def test_false_captions_differ_in_one_content_word() -> None:
    rng = np.random.default_rng(1)
    for seed in range(SCENES):
        scene = sample_scene(rng, PRETRAINING)
        clauses = true_clauses(scene, rng)
        changed = falsify(clauses, scene, rng)
        assert changed is not None
        true_words, false_words = (plain(join(c, np.random.default_rng(seed))) for c in (clauses, changed))
        assert len(true_words) == len(false_words)
        assert sum(a != b for a, b in zip(true_words, false_words, strict=True)) == 1


def test_captions_respect_length_and_vocabulary() -> None:
    rng, words = np.random.default_rng(2), set(caption_words())
    for layout in (PRETRAINING, TASK):
        for _ in range(SCENES):
            scene = sample_scene(rng, layout)
            for text in (caption(scene, rng), false_caption(scene, rng)):
                assert 6 <= len(text.split()) <= 22
                assert set(text.split()) <= words


def test_every_kind_of_word_is_falsified() -> None:
    rng, kinds = np.random.default_rng(3), set()
    for _ in range(SCENES):
        scene = sample_scene(rng, PRETRAINING)
        clauses = true_clauses(scene, rng)
        changed = falsify(clauses, scene, rng)
        assert changed is not None
        for a, b in zip(clauses, changed, strict=True):
            kinds |= {variant.kind for variant in a.variants() if variant.clause == b}
    assert kinds == {"color", "shape", "size", "number", "relation", "place"}


def test_same_seed_gives_the_same_caption() -> None:
    scene = sample_scene(np.random.default_rng(4), PRETRAINING)
    for write in (caption, false_caption):
        assert write(scene, np.random.default_rng(5)) == write(scene, np.random.default_rng(5))
