from __future__ import annotations

import numpy as np

from tasks.mini.captions import caption_words
from tasks.mini.clauses import Count, Exists, Located, Noun, Predicate, Related
from tasks.mini.descriptions import describe, sample_clauses
from tasks.mini.world import TASK, sample_scene


def test_descriptions_hold_and_are_never_captions_of_pretraining() -> None:
    rng = np.random.default_rng(0)
    known = set(caption_words())
    for _ in range(300):
        scene = sample_scene(rng, TASK)
        clauses = sample_clauses(scene, rng)
        assert len(clauses) in (2, 3)
        assert all(clause.holds(scene) for clause in clauses)
        assert set(describe(clauses, rng).split()) - known


def test_sentences() -> None:
    rng = np.random.default_rng(0)
    star, heart = Noun(shape="star"), Noun(shape="heart")
    related, located = Related(star, heart, "above"), Located(heart, "top", None)
    counted, said = Count(Noun(shape="cross"), 2), Predicate(Noun(shape="heart"), "size", "large")
    texts = {describe((related, located), rng) for _ in range(400)}
    assert "a star over a heart , also a heart near the top" in texts
    assert "a star with a heart under it while a heart at the top" in texts
    texts = {describe((counted, said), rng) for _ in range(600)}
    assert "two crosses in all plus huge is what the heart is" in texts
    texts = {describe((Exists(Noun()), counted), rng) for _ in range(600)}
    assert "you see an object and besides the number of crosses is two" in texts


def test_names_of_colours_and_shapes() -> None:
    rng = np.random.default_rng(0)
    circle = Noun("orange", "circle")
    texts = {describe((Exists(circle), Exists(circle)), rng).split()[1] for _ in range(200)}
    assert {"orange", "copper", "fire"} <= texts
    counted = Count(circle, 2), Exists(circle)
    texts = {describe(counted, rng) for _ in range(12000)}
    assert "just two copper circles , a fire disc" in texts
    words = {word for text in texts for word in text.split()}
    assert {"disc", "wheel", "circle", "circles"} <= words
    assert not {"discs", "wheels"} & words
