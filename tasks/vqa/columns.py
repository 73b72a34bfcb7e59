"""Questions and annotations by column, parsed once per version of the files and then read from the cache folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tasks.data.columns import Arrays, Strings, number_distinct, parsed
from tasks.vqa.files import ANNOTATORS, TARGET_SCORES, Annotation, OfficialSplit, read_split, split_files
from tasks.vqa.scoring import AnnotatorAnswer, normalize_answer


@dataclass(frozen=True)
class SplitColumns:
    """One official split; its N questions are in the file's order.

    files: SHA-256 (hex) by file name.
    arrays: `question_id`, `image_id` `(N,)` int64; `text` (see `Strings`). If the split is annotated also `answer`
        `(N, 10)` and `majority` `(N,)`, indices into the distinct answers `answers`; `annotator` `(N, 10)`; and
        `answer_type` `(N,)`, indices into `answer_types`.
    """

    name: str
    files: Mapping[str, str]
    arrays: Arrays

    @property
    def annotated(self) -> bool:
        """True if the answers are known."""
        return "answer" in self.arrays

    @cached_property
    def texts(self) -> Strings:
        """The questions' texts."""
        return Strings.from_arrays(self.arrays, "text")

    @cached_property
    def answers(self) -> list[str]:
        """The distinct answers."""
        return list(Strings.from_arrays(self.arrays, "answers"))

    @cached_property
    def answer_types(self) -> list[str]:
        """The distinct answer types."""
        return list(Strings.from_arrays(self.arrays, "answer_types"))

    def classes(self, answer_index: Mapping[str, int], raw: bool = False) -> np.ndarray:
        """`(N, 10)` class indices of the annotators' answers in normalised form; -1 outside the vocabulary.

        raw: of the answers as they were given.
        """
        texts = self.answers if raw else map(normalize_answer, self.answers)
        index = [answer_index.get(text, -1) for text in texts]
        classes: np.ndarray = np.array([*index, -1], dtype=np.int32)[self.arrays["answer"]]
        return classes

    def given(self, row: int) -> tuple[AnnotatorAnswer, ...]:
        """All annotators' answers to a question."""
        annotators, answers = self.arrays["annotator"][row], self.arrays["answer"][row]
        return tuple((a, self.answers[b]) for a, b in zip(annotators.tolist(), answers.tolist(), strict=True))

    def majority_counts(self) -> Counter[str]:
        """How often each answer is the majority answer."""
        counts = np.bincount(self.arrays["majority"], minlength=len(self.answers)).tolist()
        return Counter({answer: count for answer, count in zip(self.answers, counts, strict=True) if count})


def load_split(root: Path, name: str, annotated: bool = True) -> SplitColumns:
    """A split, from the cache folder if its files were parsed before.

    Raises:
        UserError: a file is missing or broken; names the file and place at fault.
    """
    files, arrays = parsed(
        split_files(root, name, annotated),
        ["vqa", annotated],
        [read_split, to_arrays],
        lambda: to_arrays(read_split(root, name, annotated)),
    )
    return SplitColumns(name, files, arrays)


def to_arrays(split: OfficialSplit) -> Arrays:
    """The columns of a parsed split."""
    questions = split.questions
    arrays: dict[str, np.ndarray] = {
        "question_id": np.array([question.id for question in questions], dtype=np.int64),
        "image_id": np.array([question.image_id for question in questions], dtype=np.int64),
        **Strings.of(question.text for question in questions).arrays("text"),
    }
    annotations = [question.annotation for question in questions if question.annotation is not None]
    if len(annotations) == len(questions):
        answers, places = number_distinct(text for each in annotations for text in _texts_of(each))
        of_questions = places.reshape(-1, ANNOTATORS + 1)
        types, arrays["answer_type"] = number_distinct(each.answer_type for each in annotations)
        annotators = [annotator for each in annotations for annotator, _ in each.answers]
        arrays |= {
            "answer": of_questions[:, :ANNOTATORS],
            "majority": of_questions[:, ANNOTATORS],
            "annotator": np.array(annotators, dtype=np.int64).reshape(-1, ANNOTATORS),
            **Strings.of(answers).arrays("answers"),
            **Strings.of(types).arrays("answer_types"),
        }
    return arrays


def _texts_of(annotation: Annotation) -> Iterator[str]:
    """The ten answers, then the majority answer."""
    yield from (answer for _, answer in annotation.answers)
    yield annotation.majority_answer


def soft_scores(classes: np.ndarray) -> dict[int, float]:
    """Soft targets by class index, from the classes `(10,)` of the annotators' answers; -1 is left out."""
    counts = Counter(index for index in classes.tolist() if index >= 0)
    return {index: TARGET_SCORES[min(count, len(TARGET_SCORES) - 1)] for index, count in counts.items()}
