"""Statements about two pictures, left and right, that can be said and checked."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from tasks.mini.clauses import NUMBERS, Clause, Count, Exists, Located, Noun, Related
from tasks.mini.sentences import Sentence
from tasks.mini.world import Scene, plural

TOTALS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
"""Numbers of things in both pictures together that can be said."""

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
"""Quantifier to its wordings: around what a picture has, and behind a clause as captions word it."""

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
        """Whether it is true; `None` where people could argue about it."""


@dataclass(frozen=True)
class Quantified(PairStatement):
    """A clause about one picture that holds of both, neither, one, some (at least one), the left or the right."""

    quantifier: str
    clause: Clause

    @property
    def kind(self) -> str:
        return self.quantifier

    def parts(self, left: Scene, right: Scene) -> tuple[bool, bool] | None:
        """Whether the clause is true of either picture; `None` where that can be argued about."""
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
        around, behind = QUANTIFIED[self.quantifier]
        phrase = phrase_of(self.clause)
        # A caption about "the picture", or about what is "here", is about one.
        alone = [said for said in self.clause.wordings() if not {"picture", "here"} & set(said.split())]
        return [
            *(template.format(phrase) for template in around),
            *(f"{said} {where}" for said in alone for where in behind),
        ]


@dataclass(frozen=True)
class Total(PairStatement):
    """Exactly `number` things that fit the noun are in the two pictures together."""

    noun: Noun
    number: int

    def truth(self, left: Scene, right: Scene) -> bool | None:
        return len(self.noun.among(left)) + len(self.noun.among(right)) == self.number

    def wordings(self) -> list[str]:
        return [template.format(plural(self.noun.text), TOTALS[self.number]) for template in _TOTAL]


@dataclass(frozen=True)
class Compared(PairStatement):
    """How the pictures' numbers of things that fit the noun compare: `more left`, `more right` or `equal`."""

    noun: Noun
    how: str

    def truth(self, left: Scene, right: Scene) -> bool | None:
        ours, theirs = len(self.noun.among(left)), len(self.noun.among(right))
        return {"more left": ours > theirs, "more right": ours < theirs, "equal": ours == theirs}[self.how]

    def wordings(self) -> list[str]:
        return [template.format(plural(self.noun.text)) for template in _COMPARED[self.how]]


def phrase_of(clause: Clause) -> str:
    """What a picture has of which the clause is true: "a red circle above a square"."""
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
