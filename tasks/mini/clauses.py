"""Statements about a scene that can be worded (`wordings`) and checked (`holds`, `fails`).

A borderline case that people could dispute, such as "left of" by three pixels, neither holds nor fails, and so is
never used.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from tasks.mini.sentences import Sentence
from tasks.mini.world import (
    CLEAR_MARGIN,
    COLORS,
    IMAGE_SIZE,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    plural,
    relation_holds,
)

NUMBERS = {1: "one", 2: "two", 3: "three"}

VALUES: dict[str, tuple[str, ...]] = {"color": tuple(COLORS), "shape": SHAPES, "size": tuple(SIZES)}
_OPPOSITE = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}
_PLACE_MARGIN = 4  # pixels from the middle of the picture beyond which "left" or "top" is indisputable

_EXISTS = (
    "there is a {0}",
    "a {0} is shown",
    "the picture has a {0}",
    "here is a {0}",
    "a {0} is in the picture",
)
_COUNT_ONE = ("there is one {0}", "one {0} is shown", "the picture has one {0}", "exactly one {0} is here")
_COUNT_MORE = (
    "there are {1} {0}",
    "{1} {0} are shown",
    "the picture has {1} {0}",
    "exactly {1} {0} are here",
)
_RELATED = ("a {0} is {2} a {1}", "there is a {0} {2} a {1}", "a {0} lies {2} a {1}")
_LOCATED = ("a {0} is {1}", "there is a {0} {1}", "a {0} lies {1}", "{1} is a {0}")
_PREDICATE = ("the {0} is {1}", "the only {0} is {1}")
_PREDICATE_SHAPE = ("the {0} is a {1}", "the only {0} is a {1}")
_LISTING = ("there are {0}", "{0} are shown", "the picture has {0}", "here are {0}")


@dataclass(frozen=True)
class Noun:
    """A description such as "small red circle"; attributes that are `None` are not mentioned."""

    color: str | None = None
    shape: str | None = None
    size: str | None = None

    def matches(self, thing: Thing) -> bool:
        return (
            (self.color is None or self.color == thing.color)
            and (self.shape is None or self.shape == thing.shape)
            and (self.size is None or self.size == thing.size)
        )

    def among(self, scene: Scene) -> list[Thing]:
        return [thing for thing in scene.things if self.matches(thing)]

    @property
    def text(self) -> str:
        return " ".join(word for word in (self.size, self.color, self.shape or "thing") if word)


@dataclass(frozen=True)
class Clause(Sentence):
    """One statement about a scene. At most one of `holds` and `fails` is true."""

    @abstractmethod
    def holds(self, scene: Scene) -> bool:
        """True if the statement is indisputably true."""

    def fails(self, scene: Scene) -> bool:
        """True if the statement is indisputably false."""
        return not self.holds(scene)

    @abstractmethod
    def variants(self) -> list[Variant]:
        """All statements that differ from this one in a single content word."""


class Variant(NamedTuple):
    """A clause one word away from another: `kind` is color, shape, size, number, relation or place."""

    kind: str
    word: str
    clause: Clause


@dataclass(frozen=True)
class Exists(Clause):
    noun: Noun

    def holds(self, scene: Scene) -> bool:
        return any(self.noun.matches(thing) for thing in scene.things)

    def wordings(self) -> list[str]:
        return [template.format(self.noun.text) for template in _EXISTS]

    def variants(self) -> list[Variant]:
        return [Variant(kind, word, Exists(noun)) for kind, word, noun in _noun_variants(self.noun)]


@dataclass(frozen=True)
class Count(Clause):
    """Exactly `number` (1 to 3) things match the noun."""

    noun: Noun
    number: int

    def holds(self, scene: Scene) -> bool:
        return len(self.noun.among(scene)) == self.number

    def wordings(self) -> list[str]:
        if self.number == 1:
            return [template.format(self.noun.text) for template in _COUNT_ONE]
        return [template.format(plural(self.noun.text), NUMBERS[self.number]) for template in _COUNT_MORE]

    def variants(self) -> list[Variant]:
        return [
            Variant("number", word, Count(self.noun, number))
            for number, word in NUMBERS.items()
            if number != self.number
        ]


@dataclass(frozen=True)
class Related(Clause):
    """Some thing that matches `first` has the relation to another that matches `second`."""

    first: Noun
    second: Noun
    relation: str

    def _some(self, scene: Scene, margin: int) -> bool:
        return any(
            a is not b and relation_holds(a, b, self.relation, margin)
            for a in self.first.among(scene)
            for b in self.second.among(scene)
        )

    def holds(self, scene: Scene) -> bool:
        return self._some(scene, CLEAR_MARGIN)

    def fails(self, scene: Scene) -> bool:
        return not self._some(scene, 1)

    def wordings(self) -> list[str]:
        return [template.format(self.first.text, self.second.text, self.relation) for template in _RELATED]

    def variants(self) -> list[Variant]:
        a, b, relation = self.first, self.second, self.relation
        found = [Variant("relation", r, Related(a, b, r)) for r in RELATIONS if r != relation]
        found += [Variant(kind, w, Related(noun, b, relation)) for kind, w, noun in _noun_variants(a)]
        return found + [Variant(kind, w, Related(a, noun, relation)) for kind, w, noun in _noun_variants(b)]


@dataclass(frozen=True)
class Located(Clause):
    """A matching thing is in a part of the picture: `vertical` is top or bottom, `horizontal` left or right."""

    noun: Noun
    vertical: str | None
    horizontal: str | None

    def _some(self, scene: Scene, margin: int) -> bool:
        return any(
            _in_half(t.y, self.vertical, "top", margin) and _in_half(t.x, self.horizontal, "left", margin)
            for t in self.noun.among(scene)
        )

    def holds(self, scene: Scene) -> bool:
        return self._some(scene, _PLACE_MARGIN)

    def fails(self, scene: Scene) -> bool:
        return not self._some(scene, -_PLACE_MARGIN)

    @property
    def place(self) -> str:
        if self.vertical and self.horizontal:
            return f"in the {self.vertical} {self.horizontal}"
        return f"at the {self.vertical}" if self.vertical else f"on the {self.horizontal} side"

    def wordings(self) -> list[str]:
        return [template.format(self.noun.text, self.place) for template in _LOCATED]

    def variants(self) -> list[Variant]:
        noun, vertical, horizontal = self.noun, self.vertical, self.horizontal
        found = [Variant(kind, w, Located(n, vertical, horizontal)) for kind, w, n in _noun_variants(noun)]
        if vertical:
            found.append(
                Variant("place", _OPPOSITE[vertical], Located(noun, _OPPOSITE[vertical], horizontal))
            )
        if horizontal:
            found.append(
                Variant("place", _OPPOSITE[horizontal], Located(noun, vertical, _OPPOSITE[horizontal]))
            )
        return found


@dataclass(frozen=True)
class Predicate(Clause):
    """The only thing that matches the noun has `value` as its `attribute` (color, shape or size)."""

    noun: Noun
    attribute: str
    value: str

    def holds(self, scene: Scene) -> bool:
        referents = self.noun.among(scene)
        return len(referents) == 1 and getattr(referents[0], self.attribute) == self.value

    def wordings(self) -> list[str]:
        templates = _PREDICATE_SHAPE if self.attribute == "shape" else _PREDICATE
        return [template.format(self.noun.text, self.value) for template in templates]

    def variants(self) -> list[Variant]:
        # Another noun might match nothing, which is odd rather than false; so only the value changes.
        return [
            Variant(self.attribute, value, Predicate(self.noun, self.attribute, value))
            for value in VALUES[self.attribute]
            if value != self.value
        ]


@dataclass(frozen=True)
class Listing(Clause):
    """All of these are in the picture. The nouns are distinct and equally specific: no thing is listed twice."""

    nouns: tuple[Noun, ...]

    def holds(self, scene: Scene) -> bool:
        return all(any(noun.matches(thing) for thing in scene.things) for noun in self.nouns)

    def wordings(self) -> list[str]:
        listed = " and ".join(f"a {noun.text}" for noun in self.nouns)
        return [template.format(listed) for template in _LISTING]

    def variants(self) -> list[Variant]:
        return [
            Variant(kind, word, Listing((*self.nouns[:k], noun, *self.nouns[k + 1 :])))
            for k, changed in enumerate(self.nouns)
            for kind, word, noun in _noun_variants(changed)
            if noun not in self.nouns
        ]


def caption_words() -> list[str]:
    """Every word that captions can contain, sorted."""
    plurals = [plural(shape) for shape in (*SHAPES, "thing")]
    places = [
        Located(Noun(), v, h).place
        for v in ("top", "bottom", None)
        for h in ("left", "right", None)
        if v or h
    ]
    templates = (_EXISTS, _COUNT_ONE, _COUNT_MORE, _RELATED, _LOCATED, _PREDICATE, _PREDICATE_SHAPE, _LISTING)
    phrases = [
        *COLORS,
        *SHAPES,
        *SIZES,
        *RELATIONS,
        *NUMBERS.values(),
        *plurals,
        *places,
        "thing",
        "and",
        "a",
    ]
    phrases += ["an"]
    phrases += [template for group in templates for template in group]
    return sorted({word for phrase in phrases for word in phrase.split() if not word.startswith("{")})


def _in_half(coordinate: int, half: str | None, lower: str, margin: int) -> bool:
    """True if a coordinate is at least `margin` pixels inside `half`; `lower` is the name of the half from 0 on."""
    if half is None:
        return True
    beyond = IMAGE_SIZE // 2 - coordinate
    return (beyond if half == lower else -beyond) >= margin


def _noun_variants(noun: Noun) -> list[tuple[str, str, Noun]]:
    """(kind, new word, new noun) for every change of one attribute that the noun mentions."""
    return [
        (kind, word, Noun(**{"color": noun.color, "shape": noun.shape, "size": noun.size, kind: word}))
        for kind, words in VALUES.items()
        if (named := getattr(noun, kind)) is not None
        for word in words
        if word != named
    ]
