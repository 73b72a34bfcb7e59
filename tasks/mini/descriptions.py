"""Descriptions of a scene for retrieval: the clauses of captions, worded as no pre-training caption is.

Every description joins two or three clauses with words that captions do not use, so none can have been seen in
pre-training. Two of the three names of each colour, and of most shapes, occur in no caption either: their meaning
must be learned from the task.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tasks.mini.captions import true_clauses
from tasks.mini.clauses import NUMBERS, Clause, Count, Exists, Listing, Located, Noun, Predicate, Related
from tasks.mini.world import Scene, pick, plural

_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "small": ("small", "tiny", "little"),
    "large": ("large", "big", "huge"),
    "thing": ("thing", "object", "figure"),
    "red": ("red", "blood", "wine"),
    "green": ("green", "grass", "forest"),
    "blue": ("blue", "sky", "navy"),
    "yellow": ("yellow", "golden", "honey"),
    "purple": ("purple", "violet", "royal"),
    "orange": ("orange", "copper", "fire"),
    "white": ("white", "snow", "milk"),
    "brown": ("brown", "wooden", "coffee"),
}
"""Caption word to its synonyms; captions use only the first."""
_SHAPE_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "wheel"),
    "square": ("square", "card", "block"),
    "triangle": ("triangle", "roof", "hill"),
    "cross": ("cross", "crossing"),
}
"""Used in the singular only: the embedded vocabulary lacks some of their plurals."""
_RELATIONS: Mapping[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
}
_INVERSE: Mapping[str, str] = {
    "left of": "to the right of it",
    "right of": "to the left of it",
    "above": "under it",
    "below": "over it",
}
_PLACES: Mapping[str, tuple[str, ...]] = {
    "at the top": ("at the top", "near the top", "in the upper half"),
    "at the bottom": ("at the bottom", "near the bottom", "in the lower half"),
    "on the left side": ("on the left side", "in the left half"),
    "on the right side": ("on the right side", "in the right half"),
}
_JOINED = (" , ", " while ", " plus ", " , also ", " and besides ")


def describe(clauses: tuple[Clause, ...], rng: np.random.Generator) -> str:
    """Two or more clauses as one sentence in lower case."""
    said = [_say(clause, rng) for clause in clauses]
    return said[0] + "".join(pick(_JOINED, rng) + part for part in said[1:])


def sample_clauses(scene: Scene, rng: np.random.Generator) -> tuple[Clause, ...]:
    """Two or three clauses that hold of the scene."""
    while True:
        clauses = true_clauses(scene, rng)
        if len(clauses) > 1:
            return clauses


def _say(clause: Clause, rng: np.random.Generator) -> str:
    match clause:
        case Exists(noun):
            return pick(("{0}", "you see {0}", "someone drew {0}"), rng).format(_a(noun, rng))
        case Count(noun, number):
            things = _name(noun, rng) if number == 1 else plural(_name(noun, rng, _SYNONYMS))
            return pick(("just {1} {0}", "{1} {0} in all", "the number of {2} is {1}"), rng).format(
                things, NUMBERS[number], plural(_name(noun, rng, _SYNONYMS))
            )
        case Related(first, second, relation):
            if rng.random() < 0.5:
                return f"{_a(first, rng)} with {_a(second, rng)} {_INVERSE[relation]}"
            return f"{_a(first, rng)} {pick(_RELATIONS[relation], rng)} {_a(second, rng)}"
        case Located(noun):
            return f"{_a(noun, rng)} {pick(_PLACES.get(clause.place, (clause.place,)), rng)}"
        case Predicate(noun, attribute, value):
            value = pick(_SYNONYMS.get(value, (value,)), rng)
            said = f"a {value}" if attribute == "shape" else value
            return f"{said} is what the {_name(noun, rng)} is"
        case Listing(nouns):
            return pick((" as well as ", " together with "), rng).join(_a(noun, rng) for noun in nouns)
    raise TypeError(f"no words for {clause}")


def _a(noun: Noun, rng: np.random.Generator) -> str:
    name = _name(noun, rng)
    return f"an {name}" if name.startswith("o") else f"a {name}"  # orange, object


def _name(
    noun: Noun,
    rng: np.random.Generator,
    names: Mapping[str, tuple[str, ...]] = {**_SYNONYMS, **_SHAPE_SYNONYMS},
) -> str:
    """The noun with each word replaced by a random synonym."""
    return " ".join(pick(names.get(word, (word,)), rng) for word in noun.text.split())
