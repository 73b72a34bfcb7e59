"""Write questions with options about drawn pictures, and about words, in ScienceQA's file format.

Natural science asks about what is drawn, social science about where it is; language science is about words alone.
Some questions have a text context, some of them no picture. Accuracies on these files are accuracies on `mini`, never
on ScienceQA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.mini.clauses import VALUES, Noun
from tasks.mini.folder import Generation, check_sizes, write_json
from tasks.mini.render import TEXTURED, render
from tasks.mini.scenes import Things, free_scene
from tasks.mini.world import COLORS, RELATIONS, SHAPES, Scene, pick, relation_holds

VERSION = 1
"""Increase with every change that alters a file."""

_SUBJECTS = ("natural science", "natural science", "social science", "language science")
_TRIES = 200


@dataclass(frozen=True)
class Sizes:
    """Number of questions in each split."""

    train: int = 3000
    val: int = 400
    test: int = 1200

    def __post_init__(self) -> None:
        check_sizes(self)


@dataclass(frozen=True)
class Asked:
    """A question, its right answer, other answers to choose from, and a context (may be empty)."""

    question: str
    answer: str
    others: Sequence[str]
    hint: str = ""


def ensure_scienceqa(cache_root: Path, seed: int = 0, sizes: Sizes = Sizes()) -> Path:
    """The folder with the benchmark's files, generated under `cache_root` if it does not exist yet."""
    return _GENERATION.ensure(cache_root, seed, sizes)


def _write(root: Path, seed: int, sizes: Sizes) -> None:
    taken: set[Things] = set()
    problems: dict[str, Any] = {}
    splits: dict[str, list[str]] = {}
    for index, split in enumerate(("train", "val", "test")):
        rng = np.random.default_rng([seed, index])
        splits[split] = []
        for _ in range(getattr(sizes, split)):
            identifier = str(len(problems) + 1)
            subject = pick(_SUBJECTS, rng)
            image = None
            if subject == "language science":
                asked = _about_words(rng)
            else:
                scene, asked = _about_picture(subject, taken, rng)
                taken.add(frozenset(scene.things))
                folder = root / "images" / split / identifier
                folder.mkdir(parents=True)
                Image.fromarray(render(scene, TEXTURED, rng)).save(folder / "image.png")
                image = "image.png"
            problems[identifier] = _problem(asked, subject, split, image, rng)
            splits[split].append(identifier)
    write_json(root / "problems.json", problems)
    write_json(root / "pid_splits.json", splits)


_GENERATION: Generation[Sizes] = Generation("scienceqa", VERSION, _write)


def _problem(
    asked: Asked, subject: str, split: str, image: str | None, rng: np.random.Generator
) -> dict[str, Any]:
    """The official fields; a question has two to four options in random order."""
    count = int(rng.integers(1, min(3, len(asked.others)) + 1))
    others = [asked.others[k] for k in rng.permutation(len(asked.others))[:count].tolist()]
    place = int(rng.integers(count + 1))
    return {
        "question": asked.question,
        "choices": [*others[:place], asked.answer, *others[place:]],
        "answer": place,
        "hint": asked.hint,
        "image": image,
        "task": "closed choice",
        "grade": f"grade{int(rng.integers(1, 13))}",
        "subject": subject,
        "topic": "mini",
        "category": "mini",
        "skill": "mini",
        "lecture": "",
        "solution": "",
        "split": split,
    }


def _about_picture(subject: str, taken: set[Things], rng: np.random.Generator) -> tuple[Scene, Asked]:
    ask = _attribute if subject == "natural science" else _place
    while True:
        scene = free_scene(taken, rng)
        for _ in range(_TRIES // 20):
            if (asked := ask(scene, rng)) is not None:
                return scene, asked


def _attribute(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """The colour or shape of the only thing of a shape or colour; a context may name the thing instead."""
    thing = pick(scene.things, rng)
    kind, given = ("color", "shape") if rng.random() < 0.6 else ("shape", "color")
    noun = Noun(**{given: getattr(thing, given)})
    if len(noun.among(scene)) != 1:
        return None
    right = getattr(thing, kind)
    others = [value for value in VALUES[kind] if value != right]
    if rng.random() < 0.3:
        hint = f"A pupil points at the {noun.text}."
        return Asked(f"Which {kind} does the pupil point at?", right, others, hint)
    return Asked(f"Which {kind} does the {noun.text} have?", right, others)


def _place(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """Where one thing lies from another; the picture is a map."""
    first, second = pick(scene.things, rng), pick(scene.things, rng)
    one, other = Noun(first.color, first.shape), Noun(second.color, second.shape)
    true = [relation for relation in RELATIONS if relation_holds(first, second, relation)]
    false = [relation for relation in RELATIONS if relation_holds(second, first, relation)]
    if len(one.among(scene)) != 1 or len(other.among(scene)) != 1 or not true:
        return None
    return Asked(f"On this map, where is the {one.text} from the {other.text}?", pick(true, rng), false)


def _about_words(rng: np.random.Generator) -> Asked:
    """Which word is a colour or a shape, or which of two a sentence names; without a picture."""
    color, shape = pick(tuple(COLORS), rng), pick(SHAPES, rng)
    if rng.random() < 0.5:
        kind = "color" if rng.random() < 0.5 else "shape"
        right = color if kind == "color" else shape
        return Asked(f"Which word is a {kind}?", right, SHAPES if kind == "color" else tuple(COLORS))
    others = [value for value in COLORS if value != color]
    return Asked("Which color does the sentence name?", color, others, f"The {shape} is {color}.")
