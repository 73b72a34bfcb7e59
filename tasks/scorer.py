"""What scoring a task's files takes, without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Answers = dict[str, Any]
"""Answers by example id."""


@dataclass(frozen=True)
class Scorer:
    """What scoring a task's files takes.

    read_truths: the official annotation file, as truths by example id.
    read_submission: the official submission file, as answers by example id.
    read_answer: the answer in one line of our own predictions, whose place is given for messages.
    judge: id, answer and truth → a prediction as `score` takes it.
    score: metrics in percent; `Task.score`.
    The readers raise `UserError` naming the file and place at fault.
    """

    read_truths: Callable[[Path], Mapping[str, Any]]
    read_submission: Callable[[Path], Answers]
    read_answer: Callable[[Any, str], Any]
    judge: Callable[[str, Any, Any], dict[str, Any]]
    score: Callable[[Sequence[Mapping[str, Any]]], dict[str, float]]
