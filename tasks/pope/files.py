"""POPE's official files (github.com/RUCAIBox/POPE): questions about objects in COCO's photographs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.files import write_atomically
from tasks.data.files import field, find_file, read_json_lines, require_file

CATEGORIES = ("random", "popular", "adversarial")
"""How the absent objects were chosen: at random, the most frequent ones, those that often occur together."""

LABELS = ("no", "yes")
"""By class index."""

_IMAGE = re.compile(r"COCO_(\w+)_\d+\.jpg")


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one photograph; `id` has the file's category before the official number."""

    id: str
    text: str
    label: str
    image: str
    category: str


@dataclass(frozen=True)
class QuestionFile:
    """The questions of one file in its order."""

    path: Path
    questions: tuple[Question, ...]
    digest: str


def read_category(root: Path, category: str) -> QuestionFile:
    """`coco_pope_<category>.json`. Raises `UserError` naming the file and place at fault."""
    return read_questions(require_file(root, f"coco_pope_{category}.json"), category)


def read_training(root: Path, split: str) -> QuestionFile:
    """`coco_pope_<split>.json`, which POPE does not publish. Raises `UserError` if it is missing."""
    if find_file(root, name := f"coco_pope_{split}.json") is None:
        raise UserError(
            f"{root}: no {name}. POPE publishes test questions only; make questions for training with its script "
            "from the annotations of train2014, and store them under this name."
        )
    return read_category(root, split)


def read_questions(path: Path, category: str) -> QuestionFile:
    """The questions of one file."""
    lines, digest = read_json_lines(path)
    questions: dict[str, Question] = {}
    for place, entry in lines:
        identifier = f"{category}-{field(entry, 'question_id', int, place)}"
        if identifier in questions:
            raise UserError(f"{place}: question_id {identifier.removeprefix(f'{category}-')} appears twice")
        questions[identifier] = Question(
            identifier,
            field(entry, "text", str, place),
            check_label(field(entry, "label", str, place), place),
            image_path(field(entry, "image", str, place), place),
            category,
        )
    return QuestionFile(path, tuple(questions.values()), digest)


def category_of(path: Path) -> str:
    """The category in a file's name."""
    return path.name.removesuffix(".gz").removesuffix(".json").rpartition("_")[2]


def image_path(name: str, place: str) -> str:
    """`COCO_val2014_000000310196.jpg` → its path in COCO's layout. Raises `UserError` for other names."""
    match = _IMAGE.fullmatch(name)
    if match is None:
        raise UserError(f"{place}: 'image' must be a name like COCO_val2014_000000310196.jpg, not '{name}'")
    return f"{match[1]}/{name}"


def check_label(label: str, place: str) -> str:
    """`label`. Raises `UserError` unless it is yes or no."""
    if label not in LABELS:
        raise UserError(f"{place}: a label is yes or no, not '{label}'")
    return label


def read_answer(text: str) -> str:
    """The answer that a text means, as in the official script: no if its first sentence has "no" or "not", else yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def write_answers(answers: Iterable[tuple[str, str, str]], path: Path) -> None:
    """JSON lines `{"question_id": …, "question": …, "answer": …}` from ids, questions and answers, by id."""
    lines = (
        json.dumps({"question_id": identifier, "question": question, "answer": answer})
        for identifier, question, answer in sorted(answers)
    )
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
