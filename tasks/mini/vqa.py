"""Write questions about drawn scenes in the official file formats of VQA v2.

Accuracies on these files are accuracies on `mini`, never on VQA2.0; the files' `info` says so too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.mini.annotators import annotate, most_frequent
from tasks.mini.folder import Generation, check_sizes, write_json
from tasks.mini.questions import Question, sample_question
from tasks.mini.render import TEXTURED, render
from tasks.mini.world import TASK, Scene, Thing, sample_scene

VERSION = 3
"""Increase with every change that alters a file."""

_QUESTION_TRIES = 1000
_MAX_QUESTIONS_PER_SCENE = 20  # the smallest scenes allow few more different questions
_ABOUT = {
    "description": "mini: drawn scenes in the file formats of VQA v2. Not VQA2.0.",
    "version": str(VERSION),
}
_LICENSE = {"name": "generated", "url": ""}


@dataclass(frozen=True)
class Sizes:
    """Number of scenes (pictures) in each split, and of questions about each scene."""

    train_scenes: int = 1200
    train_questions: int = 3
    val_scenes: int = 250
    val_questions: int = 2
    test_scenes: int = 700
    test_questions: int = 2

    def __post_init__(self) -> None:
        check_sizes(self)
        for name, number in asdict(self).items():
            if name.endswith("questions") and number > _MAX_QUESTIONS_PER_SCENE:
                raise ValueError(f"{name} must be at most {_MAX_QUESTIONS_PER_SCENE}, got {number}")

    def splits(self) -> dict[str, tuple[int, int]]:
        """Official split name to number of scenes and questions per scene."""
        return {
            "train2014": (self.train_scenes, self.train_questions),
            "val2014": (self.val_scenes, self.val_questions),
            "test2015": (self.test_scenes, self.test_questions),
        }


def ensure_vqa(cache_root: Path, seed: int = 0, sizes: Sizes = Sizes()) -> Path:
    """The folder with the benchmark's files, generated under `cache_root` if it does not exist yet."""
    return _GENERATION.ensure(cache_root, seed, sizes)


def _write(root: Path, seed: int, sizes: Sizes) -> None:
    taken: set[frozenset[Thing]] = set()
    for index, (split, (scenes, questions)) in enumerate(sizes.splits().items()):
        rng = np.random.default_rng([seed, index])
        _write_split(root, split, _new_scenes(scenes, taken, rng), questions, rng)


_GENERATION: Generation[Sizes] = Generation("vqa", VERSION, _write)


def _new_scenes(
    number: int, taken: set[frozenset[Thing]], rng: np.random.Generator
) -> list[tuple[int, Scene]]:
    """(image id, scene) of scenes that are not in `taken`, which they are added to; ids continue its count."""
    scenes: list[tuple[int, Scene]] = []
    while len(scenes) < number:
        scene = sample_scene(rng, TASK)
        if (things := frozenset(scene.things)) not in taken:
            taken.add(things)
            scenes.append((len(taken), scene))
    return scenes


def _write_split(
    root: Path, split: str, scenes: list[tuple[int, Scene]], per_scene: int, rng: np.random.Generator
) -> None:
    (root / split).mkdir()
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in scenes:
        picture = Image.fromarray(render(scene, TEXTURED, rng))
        picture.save(root / split / f"COCO_{split}_{image_id:012d}.jpg", quality=95, subsampling=0)
        for k, question in enumerate(_distinct_questions(scene, per_scene, rng)):
            question_id = image_id * 1000 + k
            questions.append({"image_id": image_id, "question": question.text, "question_id": question_id})
            annotations.append(
                {"image_id": image_id, "question_id": question_id, **_annotation(question, scene, rng)}
            )
    common = {"info": _ABOUT, "license": _LICENSE, "data_type": "mscoco", "data_subtype": split}
    write_json(
        root / f"v2_OpenEnded_mscoco_{split}_questions.json",
        {**common, "task_type": "Open-Ended", "questions": questions},
    )
    write_json(root / f"v2_mscoco_{split}_annotations.json", {**common, "annotations": annotations})


def _distinct_questions(scene: Scene, number: int, rng: np.random.Generator) -> list[Question]:
    asked: dict[str, Question] = {}
    for _ in range(_QUESTION_TRIES):
        if len(asked) == number:
            break
        question = sample_question(scene, rng)
        asked.setdefault(question.text, question)
    return list(asked.values())


def _annotation(question: Question, scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
    """The official fields of an annotation; `question_type` holds the question's family."""
    answers = annotate(question, scene, rng)
    return {
        "question_type": question.family,
        "answer_type": question.answer_type,
        "multiple_choice_answer": most_frequent(answers, question.answer),
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": k}
            for k, answer in enumerate(answers, start=1)
        ],
    }
