"""Turns of dialogue about a scene, for pre-training: short questions with one answer, and captions on request.

Questions are worded as no task's are, and numbers are words, so the tasks' questions must be learned from the tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tasks.mini.captions import caption, falsify, join, true_clauses
from tasks.mini.clauses import VALUES, Noun
from tasks.mini.world import RELATIONS, Scene, pick, plural, relation_holds

KINDS = ("caption", "attribute", "beside", "number", "truth", "choice", "letter")
"""What a turn is about; see `sample_turn`."""

_SHARES = (0.06, 0.3, 0.14, 0.14, 0.16, 0.08, 0.12)
_LETTERS = "abcd"
_NUMBERS = ("none", "one", "two", "three", "four", "five")
_TRIES = 20


@dataclass(frozen=True)
class Turn:
    """A question and its answer; `kind` is one of `KINDS`."""

    kind: str
    question: str
    answer: str


def sample_turn(scene: Scene, rng: np.random.Generator) -> Turn:
    """A random turn whose answer the scene determines, except for captions, which have many."""
    ends = np.cumsum(_SHARES)
    while True:
        kind = KINDS[int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))]
        for _ in range(_TRIES):
            if (turn := _FORMS[kind](scene, rng)) is not None:
                return Turn(kind, *turn)


_Form = Callable[[Scene, np.random.Generator], tuple[str, str] | None]


def _caption(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    return "describe the picture.", caption(scene, rng)


def _attribute(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """One attribute of the only thing that others describe."""
    thing, kind = pick(scene.things, rng), pick(tuple(VALUES), rng)
    given = [other for other in VALUES if other != kind]
    kept = given if rng.random() < 0.3 else [pick(given, rng)]
    noun = Noun(**{other: getattr(thing, other) for other in kept})
    if len(noun.among(scene)) != 1:
        return None
    return f"name the {kind}: the {noun.text}.", getattr(thing, kind)


def _beside(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """The only thing in a direction from another."""
    landmark, relation = pick(scene.things, rng), pick(RELATIONS, rng)
    noun = Noun(landmark.color, landmark.shape)
    near = [thing for thing in scene.things if relation_holds(thing, landmark, relation, 1)]
    if len(noun.among(scene)) != 1 or len(near) != 1 or not relation_holds(near[0], landmark, relation):
        return None
    return f"name the thing {relation} the {noun.text}.", f"{near[0].color} {near[0].shape}"


def _number(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """The number of things that match a word, mostly one that matches some."""
    kind = pick(tuple(VALUES), rng)
    word = getattr(pick(scene.things, rng), kind) if rng.random() < 0.8 else pick(VALUES[kind], rng)
    noun = Noun(**{kind: word})
    return f"count the {plural(noun.text)}.", _NUMBERS[len(noun.among(scene))]


def _truth(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """Whether a thing is in the picture, or a caption holds; half of them are changed in one word so that they fail."""
    if rng.random() < 0.5:
        pair = _one_word_apart(scene, rng)
        if pair is None:
            return None
        there, absent = pair
        return (
            (f"true or false: {there.text}.", "true")
            if rng.random() < 0.5
            else (f"true or false: {absent.text}.", "false")
        )
    clauses = true_clauses(scene, rng)[:1]
    if rng.random() < 0.5:
        return f"true or false: {join(clauses, rng)}.", "true"
    false = falsify(clauses, scene, rng)
    return None if false is None else (f"true or false: {join(false, rng)}.", "false")


def _choice(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """Which of two descriptions, one word apart, is in the picture."""
    pair = _one_word_apart(scene, rng)
    if pair is None:
        return None
    there, absent = pair
    first, second = (there, absent) if rng.random() < 0.5 else (absent, there)
    return f"pick one: {first.text}, {second.text}.", there.text


def _letter(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """The letter of an attribute among two to four options."""
    named = _attribute(scene, rng)
    if named is None:
        return None
    question, right = named
    others = [value for values in VALUES.values() if right in values for value in values if value != right]
    options = rng.permutation(others)[: int(rng.integers(1, len(_LETTERS)))].tolist()
    place = int(rng.integers(len(options) + 1))
    options.insert(place, right)
    listed = " ".join(f"({letter}) {option}" for letter, option in zip(_LETTERS, options, strict=False))
    return f"{question} {listed}", _LETTERS[place]


def _one_word_apart(scene: Scene, rng: np.random.Generator) -> tuple[Noun, Noun] | None:
    """A colour with a shape that is in the picture, and one that is not and differs in one of the two."""
    thing, kind = pick(scene.things, rng), pick(("color", "shape"), rng)
    there = Noun(thing.color, thing.shape)
    absent = Noun(**{"color": there.color, "shape": there.shape, kind: pick(VALUES[kind], rng)})
    return None if absent.among(scene) else (there, absent)


_FORMS: dict[str, _Form] = {
    "caption": _caption,
    "attribute": _attribute,
    "beside": _beside,
    "number": _number,
    "truth": _truth,
    "choice": _choice,
    "letter": _letter,
}
