"""Hypotheses about a picture, each entailed by some pictures, contradicted by some and left open by others.

Everything in a picture is visible, so "neutral" needs statements that the picture does not decide. There are two
kinds: statements about a thing that is not there ("the red circle is large" where there is no red circle), and
properties that no picture shows ("there is a circle that is red or made of wood" where there are circles, but no
red one). No wording belongs to one label: the same sentence has each of the three labels with some picture.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from tasks.mini.clauses import VALUES, Located, Noun, Related
from tasks.mini.scenes import Theme
from tasks.mini.sentences import Sentence
from tasks.mini.world import RELATIONS, SIZES, Scene, pick, plural

CONTRADICTION, NEUTRAL, ENTAILMENT = range(3)
LABELS = ("contradiction", "neutral", "entailment")

UNSEEN = (
    "heavy",
    "made of wood",
    "made of glass",
    "made of stone",
    "very old",
    "expensive",
    "warm",
    "soft",
    "drawn by a child",
    "for sale",
)
"""Properties that no picture shows."""

# Each kind is drawn as often as it is listed. Open ones fit a set far more often, so they are drawn less often.
_KINDS = ("definite",) * 8 + ("placed",) * 3 + ("between",) * 3 + ("all",) * 2 + ("open",) * 2

_SAID = ("the {0} is {1}", "the only {0} is {1}", "the {0} in the picture is {1}")
_ALL = ("all {0} are {1}", "all the {0} are {1}", "every one of the {0} is {1}")
_OPEN = (
    "there is a {0} that is {1} or {2}",
    "the picture has a {0} that is {1} or {2}",
    "a {0} that is {2} or {1} is shown",
)


@dataclass(frozen=True)
class Hypothesis(Sentence):
    """A sentence about a picture."""

    @abstractmethod
    def label(self, scene: Scene) -> int | None:
        """The label that the picture gives it; `None` if people could dispute it."""


@dataclass(frozen=True)
class Definite(Hypothesis):
    """The only thing that matches the noun has a color, shape or size. Neutral if nothing matches."""

    noun: Noun
    attribute: str
    value: str

    @property
    def kind(self) -> str:
        return self.attribute

    def label(self, scene: Scene) -> int | None:
        referents = self.noun.among(scene)
        if not referents:
            return NEUTRAL
        if len(referents) > 1:
            return None
        return _decided(getattr(referents[0], self.attribute) == self.value)

    def wordings(self) -> list[str]:
        said = f"a {self.value}" if self.attribute == "shape" else self.value
        return [template.format(self.noun.text, said) for template in _SAID]


@dataclass(frozen=True)
class Placed(Hypothesis):
    """The only thing that matches the noun is in one half of the picture. Neutral if nothing matches."""

    place: Located

    def label(self, scene: Scene) -> int | None:
        referents = self.place.noun.among(scene)
        if not referents:
            return NEUTRAL
        if len(referents) > 1 or not (self.place.holds(scene) or self.place.fails(scene)):
            return None
        return _decided(self.place.holds(scene))

    def wordings(self) -> list[str]:
        return [
            f"the {self.place.noun.text} {verb} {self.place.place}" for verb in ("is", "lies", "can be seen")
        ]


@dataclass(frozen=True)
class Between(Hypothesis):
    """The only match of one noun is left of, above, … the only match of another. Neutral if one is missing."""

    relation: Related

    def label(self, scene: Scene) -> int | None:
        first, second = self.relation.first.among(scene), self.relation.second.among(scene)
        if max(len(first), len(second)) > 1 or (first and first == second):
            return None
        if not (first and second):
            return NEUTRAL
        if not (self.relation.holds(scene) or self.relation.fails(scene)):
            return None
        return _decided(self.relation.holds(scene))

    def wordings(self) -> list[str]:
        first, second = self.relation.first.text, self.relation.second.text
        return [f"the {first} {verb} {self.relation.relation} the {second}" for verb in ("is", "lies")]


@dataclass(frozen=True)
class All(Hypothesis):
    """All of several things that match the noun have a color, shape or size. Neutral if nothing matches."""

    noun: Noun
    attribute: str
    value: str

    def label(self, scene: Scene) -> int | None:
        referents = self.noun.among(scene)
        if not referents:
            return NEUTRAL
        if len(referents) == 1:
            return None
        return _decided(all(getattr(thing, self.attribute) == self.value for thing in referents))

    def wordings(self) -> list[str]:
        said = plural(self.value) if self.attribute == "shape" else self.value
        return [
            template.format(plural(self.noun.text), said).replace(
                f"is {plural(self.value)}", f"is a {self.value}"
            )
            for template in _ALL
        ]


@dataclass(frozen=True)
class Open(Hypothesis):
    """Something that matches the noun has a color, shape or size, or a property that no picture shows."""

    noun: Noun
    attribute: str
    value: str
    unseen: str

    def label(self, scene: Scene) -> int | None:
        candidates = self.noun.among(scene)
        if not candidates:
            return CONTRADICTION
        return ENTAILMENT if any(getattr(t, self.attribute) == self.value for t in candidates) else NEUTRAL

    def wordings(self) -> list[str]:
        said = f"a {self.value}" if self.attribute == "shape" else self.value
        return [template.format(self.noun.text, said, self.unseen) for template in _OPEN]


def sample_hypothesis(theme: Theme, rng: np.random.Generator) -> Hypothesis:
    """A random hypothesis about things of the theme."""
    kind = pick(_KINDS, rng)
    if kind == "placed":
        vertical, horizontal = pick((("top", None), ("bottom", None), (None, "left"), (None, "right")), rng)
        return Placed(Located(_noun(theme, "", rng), vertical, horizontal))
    if kind == "between":
        return Between(Related(_noun(theme, "", rng), _noun(theme, "", rng), pick(RELATIONS, rng)))
    attribute = pick(tuple(VALUES), rng)
    noun = _noun(theme, attribute, rng)
    value = {
        "color": pick(theme.colors, rng),
        "shape": pick(theme.shapes, rng),
        "size": pick(tuple(SIZES), rng),
    }
    if kind == "all":
        return All(noun, attribute, value[attribute])
    if kind == "open":
        return Open(noun, attribute, value[attribute], pick(UNSEEN, rng))
    return Definite(noun, attribute, value[attribute])


def _noun(theme: Theme, hidden: str, rng: np.random.Generator) -> Noun:
    """A description of one or two words that does not mention the attribute `hidden`."""
    words = {
        "color": pick(theme.colors, rng),
        "shape": pick(theme.shapes, rng),
        "size": pick(tuple(SIZES), rng),
    }
    words.pop(hidden, None)
    kinds = [kind for kind in words if kind != "size"]
    pairs = [{kind: words[kind] for kind in words if kind != left_out} for left_out in (*words, "")]
    return Noun(
        **pick([*({kind: words[kind]} for kind in kinds), *(p for p in pairs if 1 < len(p) < 3)], rng)
    )


def _decided(true: bool) -> int:
    return ENTAILMENT if true else CONTRADICTION
