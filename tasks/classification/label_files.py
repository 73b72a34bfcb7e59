"""Official files with one label for each example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.errors import UserError
from tasks.classification.scoring import judge_label
from tasks.data.files import field, read_json_lines
from tasks.scorer import Answers, OfficialFiles


def label_files(
    read_truths: Callable[[Path], Mapping[str, str]],
    read_submission: Callable[[Path], Answers],
    check_label: Callable[[str, str], str],
) -> OfficialFiles:
    """How a task's labels are read and judged.

    check_label: from a text in the file and its place, the label; raises `UserError` if it is none.
    """

    def read_answer(line: Any, place: str) -> str:
        return check_label(field(line, "prediction", str, place), place)

    return OfficialFiles(read_truths, read_submission, read_answer, judge_label)


def read_label_lines(path: Path, identifier: str, label_of: Callable[[Any, str], str]) -> Answers:
    """JSON lines with an example's id under the key `identifier`, each once.

    label_of: the label in a line at a place.

    Raises:
        UserError: names the line at fault.
    """
    answers: Answers = {}
    for place, entry in read_json_lines(path)[0]:
        example = field(entry, identifier, str, place)
        if example in answers:
            raise UserError(f"{place}: {identifier} '{example}' appears twice")
        answers[example] = label_of(entry, place)
    return answers
