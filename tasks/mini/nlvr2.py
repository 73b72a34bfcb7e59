"""Write sentences about pairs of drawn pictures in the official file formats of NLVR2.

As in NLVR2, a set of eight pictures makes four pairs, and every sentence of the set is used with all four: true of
two and false of two. Here each pair also has as many true sentences as false ones (see `tasks.mini.balance`). Of
the four pairs of a sentence such as "both pictures have a red circle", one has a red circle only on the left and
one only on the right, so that a single picture does not decide. Colours and sizes follow the noun, in words that
no pre-training caption has ("a circle painted red" for "a red circle"), so that knowing captions helps a frozen
model little. Accuracies on these files are accuracies on `mini`, never on NLVR2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.mini.balance import Pattern, choose_balanced, is_even
from tasks.mini.clauses import Clause, Exists, Located, Noun, Related
from tasks.mini.folder import Generation, check_sizes, write_json_lines
from tasks.mini.pairs import TOTALS, Compared, PairStatement, Quantified, Total
from tasks.mini.render import PLAIN, render
from tasks.mini.scenes import Theme, Things, new_scene, sample_theme
from tasks.mini.world import COLORS, RELATIONS, SIZES, Scene, pick

VERSION = 4
"""Increase with every change that alters a file."""

PAIRS = 4
"""Pairs of pictures in a set, and so examples per sentence."""

_THEME = 5, 4  # colours and shapes of a set
_ROUNDS = 2  # a round is one sentence and another with the opposite labels
# Sampling weights of the kinds among the statements that fit; few with "both" fit.
_WEIGHTS = {
    "both": 15.0,
    "some": 8.0,
    "neither": 1.0,
    "one": 1.0,
    "left": 0.3,
    "right": 0.3,
    "Total": 0.1,
    "Compared": 0.1,
}
_DRAWN = ("both", "some", "neither", "one") * 40 + ("left", "right") * 5 + ("Total", "Compared")
_COLORED = ("{0} painted {1}", "{0} of {1} color", "{0} colored {1}")
_SIZED = ("{0} of {1} size", "{0} that looks {1}", "{0} that appears {1}")
_CANDIDATES = 1000  # statements drawn for a set, of which `2 * _ROUNDS` are used

Pair = tuple[Scene, Scene]


@dataclass(frozen=True)
class Sizes:
    """Number of sets in each split; a set has 8 pictures and 16 examples."""

    train_sets: int = 500
    dev_sets: int = 50
    test_sets: int = 120

    def __post_init__(self) -> None:
        check_sizes(self)

    def splits(self) -> dict[str, int]:
        """Official split name to number of sets."""
        return {"train": self.train_sets, "dev": self.dev_sets, "test1": self.test_sets}


def ensure_nlvr2(cache_root: Path, seed: int = 0, sizes: Sizes = Sizes()) -> Path:
    """The folder with the benchmark's files, generated under `cache_root` if it does not exist yet."""
    return _GENERATION.ensure(cache_root, seed, sizes)


def _write(root: Path, seed: int, sizes: Sizes) -> None:
    taken: set[Things] = set()
    for index, (split, sets) in enumerate(sizes.splits().items()):
        rng = np.random.default_rng([seed, index])
        lines: list[dict[str, Any]] = []
        for number in range(sets):
            lines += _write_set(root, split, number, taken, rng)
        write_json_lines(root / f"{split}.json", lines)


_GENERATION: Generation[Sizes] = Generation("nlvr2", VERSION, _write)


def _write_set(
    root: Path, split: str, number: int, taken: set[Things], rng: np.random.Generator
) -> list[dict[str, Any]]:
    pairs, statements = sample_set(taken, rng)
    # Training images are in numbered folders, as in the official archive.
    where = {"directory": str(number % 100)} if split == "train" else {}
    folder = root / "images" / split / where.get("directory", "")
    folder.mkdir(parents=True, exist_ok=True)
    for index, pair in enumerate(pairs):
        for side, scene in enumerate(pair):
            picture = Image.fromarray(render(scene, PLAIN, rng))
            picture.save(folder / f"{split}-{number}-{index}-img{side}.png")
    lines = []
    for sentence, (statement, pattern) in enumerate(statements):
        text = reworded(statement.text(rng), rng)
        lines += [
            {
                "identifier": f"{split}-{number}-{index}-{sentence}",
                "sentence": text,
                "label": str(bool(label)),
                **where,
            }
            for index, label in enumerate(pattern)
        ]
    return lines


def sample_set(
    taken: set[Things], rng: np.random.Generator
) -> tuple[list[Pair], list[tuple[PairStatement, Pattern]]]:
    """Four pairs of new scenes, and statements with their truth (1 or 0) for each pair. Adds the scenes to `taken`."""
    while True:
        theme = sample_theme(*_THEME, rng)
        seen = set(taken)
        scenes: list[Scene] = []
        for _ in range(2 * PAIRS):
            scenes.append(new_scene("nlvr2", theme, seen, rng))
            seen.add(frozenset(scenes[-1].things))
        pairs = list(zip(scenes[::2], scenes[1::2], strict=True))
        drawn = [_statement(theme, rng) for _ in range(_CANDIDATES)]
        candidates = [
            (statement, pattern) for statement in drawn if (pattern := _pattern(statement, pairs)) is not None
        ]
        statements = choose_balanced(candidates, 2, _ROUNDS, rng, _WEIGHTS)
        if statements is not None:
            taken |= seen
            return pairs, statements


def reworded(text: str, rng: np.random.Generator) -> str:
    """A statement with colours and sizes moved after the noun.

    "a small red circle" becomes, for example, "a circle of red color that looks small".
    """
    said: list[str] = []
    adjectives: list[str] = []
    for word in text.split():
        if word in COLORS or word in SIZES:
            adjectives.append(word)
            continue
        phrase = word.replace("thing", "object")
        while adjectives:
            adjective = adjectives.pop()
            phrase = pick(_COLORED if adjective in COLORS else _SIZED, rng).format(phrase, adjective)
        if said and said[-1] in ("a", "an"):
            said[-1] = "an" if phrase[0] == "o" else "a"
        said.append(phrase)
    return " ".join(said)


def _pattern(statement: PairStatement, pairs: Sequence[Pair]) -> Pattern | None:
    """Truth of a statement for each pair; `None` if one is disputable, or if a single picture decides."""
    truths: list[int] = []
    for left, right in pairs:
        truth = statement.truth(left, right)
        if truth is None:
            return None
        truths.append(int(truth))
    if not is_even(tuple(truths), 2):
        return None
    if isinstance(statement, Quantified):
        parts = [statement.parts(left, right) for left, right in pairs]
        if parts.count((True, False)) != 1 or parts.count((False, True)) != 1:
            return None
    return tuple(truths)


def _statement(theme: Theme, rng: np.random.Generator) -> PairStatement:
    match pick(_DRAWN, rng):
        case "Total":
            return Total(_counted(theme, rng), pick(tuple(TOTALS), rng))
        case "Compared":
            return Compared(_counted(theme, rng), pick(("more left", "more right", "equal"), rng))
        case quantifier:
            return Quantified(quantifier, _clause(theme, rng))


def _clause(theme: Theme, rng: np.random.Generator) -> Clause:
    match pick(("exists",) * 10 + ("located", "related"), rng):
        case "located":
            vertical, horizontal = pick(
                (("top", None), ("bottom", None), (None, "left"), (None, "right")), rng
            )
            return Located(_noun(theme, rng), vertical, horizontal)
        case "related":
            return Related(_noun(theme, rng), _noun(theme, rng), pick(RELATIONS, rng))
    return Exists(_noun(theme, rng))


def _noun(theme: Theme, rng: np.random.Generator) -> Noun:
    color, shape, size = pick(theme.colors, rng), pick(theme.shapes, rng), pick(tuple(SIZES), rng)
    sized = Noun(shape=shape, size=size), Noun(color=color, size=size)
    return pick((*(Noun(color, shape),) * 4, *sized, Noun(shape=shape), Noun(color=color)), rng)


def _counted(theme: Theme, rng: np.random.Generator) -> Noun:
    return pick((Noun(color=pick(theme.colors, rng)), Noun(shape=pick(theme.shapes, rng))), rng)
