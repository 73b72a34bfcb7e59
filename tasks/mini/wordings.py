"""Wordings of questions. None of the question words, and few of the synonyms, occur in captions."""

from __future__ import annotations

from tasks.mini.clauses import VALUES
from tasks.mini.world import COLORS, SHAPES, plural

NAMES: dict[str, tuple[str, ...]] = {
    "small": ("small", "small", "tiny"),
    "large": ("large", "large", "big"),
    "thing": ("thing", "object"),
}
"""Caption word to the words that questions use for it; a repeated one is drawn more often."""
TO: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
"""Relation to its wordings between two things."""
EDGES: dict[str, tuple[str, ...]] = {
    "left of": ("leftmost", "farthest to the left"),
    "right of": ("rightmost", "farthest to the right"),
    "above": ("highest", "closest to the top"),
    "below": ("lowest", "closest to the bottom"),
}
"""Direction to its wordings for the outermost thing."""

WORDINGS: dict[str, tuple[str, ...]] = {
    "color": (
        "what color is the {0}?",
        "what is the color of the {0}?",
        "which color does the {0} have?",
    ),
    "shape": (
        "what shape is the {0}?",
        "what is the shape of the {0}?",
        "which shape does the {0} have?",
    ),
    "size": (
        "what size is the {0}?",
        "is the {0} large or small?",
        "how big is the {0}?",
    ),
    "count": (
        "how many {0} are there?",
        "how many {0} do you see?",
        "what number of {0} can be seen?",
    ),
    "existence": (
        "is there a {0}?",
        "do you see a {0}?",
        "is a {0} visible?",
    ),
    "existence_plural": (
        "are there any {0}?",
        "do you see any {0}?",
        "are any {0} visible?",
    ),
    "more": (
        "are there more {0} than {1}?",
        "do you see more {0} than {1}?",
        "is the number of {0} greater than the number of {1}?",
    ),
    "bigger": (
        "is the {0} bigger than the {1}?",
        "is the {0} larger than the {1}?",
        "is the {1} smaller than the {0}?",
    ),
    "which_bigger": (
        "which is bigger, the {0} or the {1}?",
        "which one is larger, the {0} or the {1}?",
        "what looks bigger, the {0} or the {1}?",
    ),
    "same": (
        "do the {0} and the {1} have the same {2}?",
        "is the {0} the same {2} as the {1}?",
        "does the {0} match the {1} in {2}?",
    ),
    "relation": (
        "is the {0} {2} the {1}?",
        "is the {0} located {2} the {1}?",
        "would you say the {0} is {2} the {1}?",
    ),
    "nearest_color": (
        "which color is the {1} nearest to the {0}?",
        "what color is the {1} closest to the {0}?",
        "what is the color of the {1} next to the {0}?",
    ),
    "nearest_shape": (
        "what shape is nearest to the {0}?",
        "which shape is closest to the {0}?",
        "what is the shape next to the {0}?",
    ),
    "beside_color": (
        "what color is the {1} {2} the {0}?",
        "which color does the {1} {2} the {0} have?",
        "the {1} {2} the {0} is which color?",
    ),
    "beside_shape": (
        "what shape is {2} the {0}?",
        "which shape is {2} the {0}?",
        "what is the shape of the {1} {2} the {0}?",
    ),
    "edge_color": (
        "what color is the {0} that is {1}?",
        "which color does the {0} that is {1} have?",
        "the {0} that is {1} has what color?",
    ),
    "edge_shape": (
        "what shape is {1}?",
        "which shape is {1}?",
        "what kind of figure is {1}?",
    ),
}
"""Form to its templates; the functions in `tasks.mini.questions` that ask a form fill its slots."""


def question_words() -> list[str]:
    """Every word that questions can contain, sorted, without punctuation."""
    phrases = [template for wordings in WORDINGS.values() for template in wordings]
    phrases += [name for table in (NAMES, TO, EDGES) for names in table.values() for name in names]
    phrases += [*COLORS, *SHAPES, *VALUES, "an"]
    phrases += [plural(noun) for noun in (*SHAPES, *NAMES["thing"])]
    words = {word.strip("?,") for phrase in phrases for word in phrase.split()}
    return sorted(word for word in words if not word.startswith("{"))
