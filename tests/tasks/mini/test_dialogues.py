"""Turns of dialogue agree with the scene."""

from __future__ import annotations

import numpy as np

from tasks.mini.dialogues import KINDS, sample_turn
from tasks.mini.wordings import WORDINGS
from tasks.mini.world import Scene, Thing

SCENE = Scene((Thing("circle", "red", "small", 8, 32), Thing("star", "blue", "large", 48, 32)))


def test_answers_follow_from_the_scene() -> None:
    rng = np.random.default_rng(0)
    turns = {turn.question: turn for turn in (sample_turn(SCENE, rng) for _ in range(600))}
    assert {turn.kind for turn in turns.values()} == set(KINDS)
    assert turns["name the color: the star."].answer == "blue"
    assert turns["name the thing right of the red circle."].answer == "blue star"
    assert turns["count the circles."].answer == "one"
    truths = {turn.question: turn.answer for turn in turns.values() if turn.kind == "truth"}
    assert set(truths.values()) == {"true", "false"}
    for question, answer in truths.items():
        if question.startswith("true or false: there is one "):
            seen = question.removeprefix("true or false: there is one ").removesuffix(".").split()
            held = any(
                all(word in (thing.color, thing.shape, thing.size, "thing") for word in seen)
                for thing in SCENE.things
            )
            assert (answer == "true") == held
    assert truths["true or false: blue star."] == "true"
    assert truths["true or false: red star."] == "false"
    for question, turn in turns.items():
        if turn.kind == "letter" and question.startswith("name the color: the star."):
            assert f"({turn.answer}) blue" in question


def test_no_question_is_worded_as_a_task_s() -> None:
    rng = np.random.default_rng(1)
    starts = {template.split("{")[0] for wordings in WORDINGS.values() for template in wordings}
    for _ in range(200):
        question = sample_turn(SCENE, rng).question
        assert not any(start and question.startswith(start) for start in starts), question
