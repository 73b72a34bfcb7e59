"""ScienceQA's official files (github.com/lupantech/ScienceQA): `problems.json`, `pid_splits.json`, images."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import write_atomically
from tasks.data.files import field, read_json, require_file, shortened

LETTERS = ("A", "B", "C", "D", "E")
"""By class index; a question has two to five options."""

SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
"""Subject to its name in papers' tables."""

SUBSETS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12")
"""Subsets of the papers' tables in their order: subject; with text context, with image, with neither; grade."""

NO_CONTEXT = "N/A"


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its options. answer: index of the right one. image: file name; None if there is none."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str
    image: str | None
    split: str
    subsets: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The question with options and context. The context is last, so that a text that is too long loses that."""
        options = " ".join(f"({letter}) {text}" for letter, text in zip(LETTERS, self.choices, strict=False))
        return f"Question: {self.question}\nOptions: {options}\nContext: {self.hint or NO_CONTEXT}"


def read_problems(path: Path) -> tuple[dict[str, Problem], str]:
    """All problems by id, and the file's digest. Raises `UserError` naming file and place."""
    content, digest = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object of problems by id")
    return {identifier: _problem(identifier, entry, path) for identifier, entry in content.items()}, digest


def read_splits(root: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Ids by split from `pid_splits.json`, and the file's digest by name. Raises `UserError` naming file and place."""
    path = require_file(root, "pid_splits.json")
    content, digest = read_json(path)
    splits = {}
    for split in ("train", "val", "test"):
        ids = field(content, split, list, str(path))
        if not all(isinstance(each, str) for each in ids):
            raise UserError(f"{path}: '{split}' must be a list of problem ids as strings")
        splits[split] = ids
    return splits, {path.name: digest}


def problems_of(ids: Iterable[str], problems: Mapping[str, Problem], where: str) -> list[Problem]:
    """The problems with these ids. Raises `UserError` naming an id that is missing or appears twice."""
    found: dict[str, Problem] = {}
    for identifier in ids:
        if identifier not in problems:
            raise UserError(f"{where}: problem {identifier} is not in problems.json")
        if identifier in found:
            raise UserError(f"{where}: problem {identifier} appears twice")
        found[identifier] = problems[identifier]
    return list(found.values())


def image_file(root: Path, problem: Problem) -> Path:
    """The path of a problem's image: `images/<split>/<id>/image.png`, or without `images/`."""
    assert problem.image is not None
    place = Path(problem.split) / problem.id / problem.image
    return root / place if (root / problem.split).is_dir() else root / "images" / place


def find_results(content: Any, path: Path) -> Mapping[str, Any]:
    """The answers in a result file: LaVIN's and the official `{"results": {id: index}}`, or the object within."""
    results = content.get("results", content) if isinstance(content, dict) else None
    if not isinstance(results, dict):
        raise UserError(f"{path}: expected an object of answers by problem id, or one with 'results'")
    return results


def _problem(identifier: str, entry: Any, path: Path) -> Problem:
    place = f"{path}: problem {identifier}"
    choices = field(entry, "choices", list, place)
    if not 2 <= len(choices) <= len(LETTERS) or not all(isinstance(each, str) for each in choices):
        raise UserError(f"{place}: 'choices' must be 2 to {len(LETTERS)} strings, not {shortened(choices)}")
    answer = field(entry, "answer", int, place)
    if not 0 <= answer < len(choices):
        raise UserError(f"{place}: 'answer' must be the index of one of {len(choices)} choices, not {answer}")
    hint = field(entry, "hint", str, place)
    image = entry.get("image")
    if image is not None and (not isinstance(image, str) or Path(image).name != image):
        raise UserError(f"{place}: 'image' must be a file name or null, not {shortened(image)}")
    subject = field(entry, "subject", str, place)
    if subject not in SUBJECTS:
        raise UserError(f"{place}: a subject is one of {', '.join(SUBJECTS)}; not '{subject}'")
    subsets = [SUBJECTS[subject]]
    subsets += ["TXT"] if hint else []
    subsets += ["IMG"] if image is not None else []
    subsets += ["NO"] if not hint and image is None else []
    subsets.append("G1-6" if _grade(entry, place) <= 6 else "G7-12")
    return Problem(
        identifier,
        field(entry, "question", str, place),
        tuple(choices),
        answer,
        hint,
        image,
        field(entry, "split", str, place),
        tuple(subsets),
    )


def _grade(entry: Any, place: str) -> int:
    grade = field(entry, "grade", str, place)
    number = grade.removeprefix("grade")
    if not re.fullmatch("[1-9]|1[0-2]", number):
        raise UserError(f"{place}: 'grade' must be grade1 to grade12, not '{grade}'")
    return int(number)


def write_results(answers: Iterable[tuple[str, int | None]], path: Path) -> None:
    """`{"results": {id: index of the option}}`; an answer that names no option is -1."""
    results = {identifier: -1 if index is None else index for identifier, index in sorted(answers)}
    write_atomically(path, json.dumps({"results": results}).encode())
