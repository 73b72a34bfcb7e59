"""VQA v2's official files: questions, annotations, image names, and the answer vocabulary."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from tasks.data.files import field, find_file, read_json, require_file, shortened
from tasks.vqa.scoring import AnnotatorAnswer, normalize_answer

ANNOTATORS = 10


MIN_OCCURRENCES = 9
"""How often an answer must be the majority answer over train and val to enter the vocabulary."""


ANSWER_FILES = ("trainval_label2ans.json", "trainval_ans2label.json")


TARGET_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)
"""Soft target of an answer that 0, 1, 2, 3, or more annotators gave."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """The ten annotators' answers to a question, their type, and the majority answer."""

    answers: tuple[AnnotatorAnswer, ...]
    answer_type: str
    majority_answer: str


@dataclass(frozen=True, slots=True)
class Question:
    """One question of the official files. annotation: None in a split without annotations."""

    id: int
    image_id: int
    text: str
    annotation: Annotation | None


@dataclass(frozen=True)
class OfficialSplit:
    """One official split, questions in the file's order. files: SHA-256 (hex) by file name."""

    name: str
    questions: tuple[Question, ...]
    files: Mapping[str, str]


@dataclass(frozen=True)
class Vocabulary:
    """The answers that a model chooses from, by class index, and where they come from."""

    answers: tuple[str, ...]
    provenance: Mapping[str, Any]


def read_annotations(path: Path) -> dict[int, Annotation]:
    """Annotations of one file by question id. Raises `UserError` naming the file and place at fault."""
    entries, _ = _read_entries(path, "annotations")
    return _parse_annotations(path, entries)[0]


def image_name(split: str, image_id: int) -> str:
    """`val2014/COCO_val2014_000000000042.jpg`; test-dev2015's images are among test2015's."""
    folder = "test2015" if split == "test-dev2015" else split
    return f"{folder}/COCO_{folder}_{image_id:012d}.jpg"


def has_annotated_split(root: Path, split: str) -> bool:
    """Whether questions and annotations of the split are under `root`, plain or gzipped."""
    return find_file(root, _questions_name(split)) is not None and (
        find_file(root, _annotations_name(split)) is not None
    )


def split_files(root: Path, split: str, annotated: bool = True) -> list[Path]:
    """The split's questions, and its annotations if `annotated`. Raises `UserError` if one is missing."""
    names = [_questions_name(split), *([_annotations_name(split)] if annotated else [])]
    return [require_file(root, name) for name in names]


def read_split(root: Path, split: str, annotated: bool = True) -> OfficialSplit:
    """Questions of a split with their annotations. Raises `UserError` naming the file and place at fault."""
    question_path, digest = require_file(root, _questions_name(split)), {}
    entries, digest[question_path.name] = _read_entries(question_path, "questions")
    annotations: dict[int, Annotation] = {}
    image_ids: dict[int, int] = {}
    annotation_path = None
    if annotated:
        annotation_path = require_file(root, _annotations_name(split))
        annotation_entries, digest[annotation_path.name] = _read_entries(annotation_path, "annotations")
        annotations, image_ids = _parse_annotations(annotation_path, annotation_entries)
        del annotation_entries  # those of VQA v2 take some gigabytes

    questions: dict[int, Question] = {}
    for index, entry in enumerate(entries):
        place = f"{question_path}: questions[{index}]"
        identifier = field(entry, "question_id", int, place)
        image_id = field(entry, "image_id", int, place)
        text = field(entry, "question", str, place)
        if identifier in questions:
            raise UserError(f"{place}: question_id {identifier} appears twice")
        if annotated and identifier not in annotations:
            raise UserError(f"{place}: question_id {identifier} has no annotation in {annotation_path}")
        if image_ids.get(identifier, image_id) != image_id:
            raise UserError(
                f"{place}: question_id {identifier} belongs to image {image_id}, "
                f"but to image {image_ids[identifier]} in {annotation_path}"
            )
        questions[identifier] = Question(identifier, image_id, text, annotations.get(identifier))

    for identifier in annotations:
        if identifier not in questions:
            raise UserError(f"{annotation_path}: question_id {identifier} has no question in {question_path}")
    return OfficialSplit(split, tuple(questions.values()), digest)


def count_vocabulary(splits: Mapping[str, Mapping[str, int]]) -> Vocabulary:
    """By the official rule: normalised majority answers that occur at least nine times in `splits`.

    splits: by a split's name, how often each answer is the majority answer of a question.
    """
    counts: Counter[str] = Counter()
    for majority in splits.values():
        for answer, count in majority.items():
            counts[normalize_answer(answer)] += count
    kept = sorted(
        (answer for answer, count in counts.items() if count >= MIN_OCCURRENCES),
        key=lambda answer: (-counts[answer], answer),
    )
    names = ", ".join(splits)
    if not kept:
        raise UserError(
            f"no answer occurs {MIN_OCCURRENCES} times in {names}, so the answer vocabulary is empty; "
            f"put {ANSWER_FILES[0]} beside the questions"
        )
    source = f"majority answers with at least {MIN_OCCURRENCES} occurrences in {names}"
    return Vocabulary(tuple(kept), {"source": source, "count": len(kept)})


def find_answer_file(root: Path) -> Path | None:
    """The published answer list under `root`, if there is one."""
    return find_file(root, *ANSWER_FILES)


def read_vocabulary(path: Path) -> Vocabulary:
    """An answer list (`label2ans`: a JSON list), its inverse (`ans2label`: answer → class index), or index → answer.

    Of the last, ViLT's form, classes may be missing. They stay in the head, as `<class 125>`, and no question has them.

    Raises:
        UserError: it is none of these, or an answer or class appears twice.
    """
    content, digest = read_json(path)
    if isinstance(content, dict) and content and all(isinstance(each, str) for each in content.values()):
        content = _in_order(content, path)
    elif isinstance(content, dict):
        by_index = {index: answer for answer, index in content.items() if type(index) is int}
        if sorted(by_index) != list(range(len(content))):
            raise UserError(
                f"{path}: class indices must run from 0 to {len(content) - 1}, each occurring once"
            )
        content = [by_index[index] for index in range(len(content))]
    if not isinstance(content, list) or not content:
        raise UserError(f"{path}: expected a list of answers, or an object from answer to class index")
    seen: dict[str, int] = {}
    for index, answer in enumerate(content):
        if not isinstance(answer, str):
            raise UserError(f"{path}: entry {index} is not a string: {answer!r}")
        if answer in seen:
            raise UserError(f"{path}: entries {seen[answer]} and {index} are the same answer, '{answer}'")
        seen[answer] = index
    return Vocabulary(tuple(content), {"source": path.name, "sha256": digest, "count": len(content)})


def _in_order(answers: Mapping[str, str], path: Path) -> list[str]:
    """The answers of an object from index to answer, in the order of their indices."""
    wrong = next((key for key in answers if not re.fullmatch(r"0|[1-9][0-9]{0,6}", key)), None)
    if wrong is not None:
        raise UserError(f"{path}: '{wrong}' is not a class index; expected an object from index to answer")
    by_index = {int(key): answer for key, answer in answers.items()}
    count = max(by_index) + 1
    if count > 2 * len(by_index):
        raise UserError(f"{path}: of the classes 0 to {count - 1} only {len(by_index)} have an answer")
    return [by_index.get(index, f"<class {index}>") for index in range(count)]


def _questions_name(split: str) -> str:
    return f"v2_OpenEnded_mscoco_{split}_questions.json"


def _annotations_name(split: str) -> str:
    return f"v2_mscoco_{split}_annotations.json"


def _read_entries(path: Path, key: str) -> tuple[list[Any], str]:
    content, digest = read_json(path)
    entries = field(content, key, list, str(path))
    if not entries:
        raise UserError(f"{path}: '{key}' is empty")
    return entries, digest


def _parse_annotations(path: Path, entries: list[Any]) -> tuple[dict[int, Annotation], dict[int, int]]:
    """Annotations and image ids by question id."""
    annotations: dict[int, Annotation] = {}
    image_ids: dict[int, int] = {}
    shared: dict[
        AnnotatorAnswer, AnnotatorAnswer
    ] = {}  # millions of pairs are equal: keep one object of each
    for index, entry in enumerate(entries):
        place = f"{path}: annotations[{index}]"
        identifier = field(entry, "question_id", int, place)
        if identifier in annotations:
            raise UserError(f"{place}: question_id {identifier} appears twice")
        answers: list[AnnotatorAnswer] = []
        for position, given in enumerate(field(entry, "answers", list, place)):
            answer_place = f"{place}.answers[{position}]"
            pair = (
                field(given, "answer_id", int, answer_place),
                field(given, "answer", str, answer_place),
            )
            answers.append(shared.setdefault(pair, pair))
        if len({annotator for annotator, _ in answers}) != ANNOTATORS or len(answers) != ANNOTATORS:
            raise UserError(
                f"{place}: expected {ANNOTATORS} answers with different answer_id; answer_id has "
                f"{shortened([annotator for annotator, _ in answers])}"
            )
        annotations[identifier] = Annotation(
            tuple(answers),
            sys.intern(field(entry, "answer_type", str, place)),
            sys.intern(field(entry, "multiple_choice_answer", str, place)),
        )
        if "image_id" in entry:
            image_ids[identifier] = field(entry, "image_id", int, place)
    return annotations, image_ids
