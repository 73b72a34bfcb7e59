"""Statements about two pictures, left and right, that can be worded and checked."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from tasks.mini.clauses import NUMBERS, Clause, Count, Exists, Located, Noun, Related
from tasks.mini.sentences import Sentence
from tasks.mini.world import Scene, plural

TOTALS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
"""Numbers of things in both pictures together that statements can mention."""

QUANTIFIED: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "both": (
        ("both pictures have {0}", "both images contain {0}", "each picture has {0}"),
        ("in both pictures", "in both images"),
    ),
    "neither": (
        ("neither picture has {0}", "no image contains {0}", "neither of the images shows {0}"),
        ("in neither picture", "in neither image"),
    ),
    "one": (
        ("exactly one picture has {0}", "only one image contains {0}", "just one of the images shows {0}"),
        ("in exactly one picture", "in only one of the images"),
    ),
    "some": (
        ("at least one picture has {0}", "at least one image contains {0}", "one or both images show {0}"),
        ("in at least one picture", "in one or both images"),
    ),
    "left": (
        ("the left picture has {0}", "the left image contains {0}", "the picture on the left shows {0}"),
        ("in the left picture", "in the left image"),
    ),
    "right": (
        ("the right picture has {0}", "the right image contains {0}", "the picture on the right shows {0}"),
        ("in the right picture", "in the right image"),
    ),
}
"""Quantifier to its templates around a noun phrase, and its endings for a clause worded as in captions."""

_TOTAL = (
    "there are exactly {1} {0} in total",
    "the two pictures have {1} {0} in total",
    "both images together show exactly {1} {0}",
)
_COMPARED: Mapping[str, tuple[str, ...]] = {
    "more left": (
        "the left picture has more {0} than the right one",
        "there are more {0} in the left image than in the right image",
        "the right picture has fewer {0} than the left one",
    ),
    "more right": (
        "the right picture has more {0} than the left one",
        "there are more {0} in the right image than in the left image",
        "the left picture has fewer {0} than the right one",
    ),
    "equal": (
        "both pictures have the same number of {0}",
        "the two images contain the same number of {0}",
        "there are as many {0} in the left image as in the right image",
    ),
}


@dataclass(frozen=True)
class PairStatement(Sentence):
    """A sentence about two pictures."""

    @abstractmethod
    def truth(self, left: Scene, right: Scene) -> bool | None:
        """True or false; `None` if people could dispute it."""


@dataclass(frozen=True)
class Quantified(PairStatement):
    """A clause about one picture, said of both, neither, exactly one, some (at least one), the left or the right."""

    quantifier: str
    clause: Clause

    @property
    def kind(self) -> str:
        return self.quantifier

    def parts(self, left: Scene, right: Scene) -> tuple[bool, bool] | None:
        """Truth of the clause for the left and for the right picture; `None` if one is disputable."""
        values = []
        for scene in (left, right):
            values.append(self.clause.holds(scene))
            if not (values[-1] or self.clause.fails(scene)):
                return None
        return values[0], values[1]

    def truth(self, left: Scene, right: Scene) -> bool | None:
        values = self.parts(left, right)
        if values is None:
            return None
        return {
            "both": all(values),
            "neither": not any(values),
            "one": sum(values) == 1,
            "some": any(values),
            "left": values[0],
            "right": values[1],
        }[self.quantifier]

    def wordings(self) -> list[str]:
        templates, endings = QUANTIFIED[self.quantifier]
        phrase = phrase_of(self.clause)
        # A caption with "the picture" or "here" speaks of a single picture.
        captions = [said for said in self.clause.wordings() if not {"picture", "here"} & set(said.split())]
        return [
            *(template.format(phrase) for template in templates),
            *(f"{said} {where}" for said in captions for where in endings),
        ]


@dataclass(frozen=True)
class Total(PairStatement):
    """Exactly `number` things in the two pictures together match the noun."""

    noun: Noun
    number: int

    def truth(self, left: Scene, right: Scene) -> bool | None:
        return len(self.noun.among(left)) + len(self.noun.among(right)) == self.number

    def wordings(self) -> list[str]:
        return [template.format(plural(self.noun.text), TOTALS[self.number]) for template in _TOTAL]


@dataclass(frozen=True)
class Compared(PairStatement):
    """Which picture has more things that match the noun: `more left`, `more right` or `equal`."""

    noun: Noun
    how: str

    def truth(self, left: Scene, right: Scene) -> bool | None:
        on_left, on_right = len(self.noun.among(left)), len(self.noun.among(right))
        return {
            "more left": on_left > on_right,
            "more right": on_left < on_right,
            "equal": on_left == on_right,
        }[self.how]

    def wordings(self) -> list[str]:
        return [template.format(plural(self.noun.text)) for template in _COMPARED[self.how]]


def phrase_of(clause: Clause) -> str:
    """What a picture contains if the clause is true of it, as a noun phrase: "a red circle above a square"."""
    match clause:
        case Exists(noun):
            return f"a {noun.text}"
        case Count(noun, number):
            return f"exactly {NUMBERS[number]} {noun.text if number == 1 else plural(noun.text)}"
        case Related(first, second, relation):
            return f"a {first.text} {relation} a {second.text}"
        case Located(noun):
            return f"a {noun.text} {clause.place}"
    raise TypeError(f"no phrase for {clause}")
