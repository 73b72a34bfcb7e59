import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.errors import UserError
from tasks.mini.folder import FINISHED
from tasks.mini.vqa import _GENERATION, Sizes, ensure_vqa

SIZES = Sizes(8, 3, 5, 2, 6, 2)
SPLITS = {"train2014": (8, 3), "val2014": (5, 2), "test2015": (6, 2)}


def load(root: Path, split: str) -> tuple[dict[str, Any], dict[str, Any]]:
    questions = json.loads((root / f"v2_OpenEnded_mscoco_{split}_questions.json").read_text())
    annotations = json.loads((root / f"v2_mscoco_{split}_annotations.json").read_text())
    return questions, annotations


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    roots = [ensure_vqa(tmp_path / name, seed, SIZES) for name, seed in (("a", 3), ("b", 3), ("c", 4))]
    first, again, other = map(files, roots)
    assert first == again
    assert first != other
    assert [list(root.parent.iterdir()) for root in roots] == [
        [root] for root in roots
    ]  # nothing temporary is left


def test_files_have_the_official_fields(tmp_path: Path) -> None:
    root = ensure_vqa(tmp_path, 0, SIZES)
    for split, (scenes, per_scene) in SPLITS.items():
        questions, annotations = load(root, split)
        assert len(questions["questions"]) == len(annotations["annotations"]) == scenes * per_scene
        assert annotations["data_subtype"] == questions["data_subtype"] == split
        for question, annotation in zip(questions["questions"], annotations["annotations"], strict=True):
            assert question.keys() == {"image_id", "question", "question_id"}
            assert question["question_id"] == annotation["question_id"]
            assert annotation["answer_type"] in ("yes/no", "number", "other")
            assert [answer["answer_id"] for answer in annotation["answers"]] == list(range(1, 11))
            with Image.open(root / split / f"COCO_{split}_{question['image_id']:012d}.jpg") as image:
                assert image.format == "JPEG"
                assert image.size == (64, 64)
                assert np.asarray(image).std() > 5


def test_ids_are_unique_over_all_splits_and_no_question_is_asked_twice(tmp_path: Path) -> None:
    root = ensure_vqa(tmp_path, 0, SIZES)
    questions = [q for split in SPLITS for q in load(root, split)[0]["questions"]]
    assert len({q["question_id"] for q in questions}) == len(questions) == 8 * 3 + 5 * 2 + 6 * 2
    assert len({q["image_id"] for q in questions}) == 8 + 5 + 6
    assert len({(q["image_id"], q["question"]) for q in questions}) == len(questions)


def test_complete_folders_are_kept_and_named_by_their_content(tmp_path: Path) -> None:
    root = ensure_vqa(tmp_path, 0, SIZES)
    (root / "mark").touch()
    assert ensure_vqa(tmp_path, 0, SIZES) == root
    assert (root / "mark").exists()
    assert len({root, ensure_vqa(tmp_path, 1, SIZES), ensure_vqa(tmp_path, 0, Sizes(8, 3, 5, 2, 6, 1))}) == 3
    assert json.loads((root / FINISHED).read_text())["seed"] == 0


def test_interrupted_generation_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tasks.mini.vqa.annotate", stop)
        with pytest.raises(KeyboardInterrupt):
            ensure_vqa(tmp_path, 0, SIZES)
    assert list(tmp_path.iterdir()) == []


def test_the_slower_of_two_processes_uses_the_folder_of_the_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.mini import vqa

    real, root = vqa._write_split, ensure_vqa(tmp_path / "away", 0, SIZES)

    def overtaken(*arguments: Any) -> None:
        real(*arguments)
        if not (tmp_path / root.name).exists():
            root.rename(tmp_path / root.name)  # the other process finishes first

    monkeypatch.setattr(vqa, "_write_split", overtaken)
    assert ensure_vqa(tmp_path, 0, SIZES) == tmp_path / root.name
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["away", root.name])


def test_incomplete_or_existing_folders_are_refused(tmp_path: Path) -> None:
    root = ensure_vqa(tmp_path, 0, SIZES)
    with pytest.raises(FileExistsError):
        _GENERATION.make(root, 0, SIZES)
    (root / FINISHED).unlink()
    with pytest.raises(UserError, match="delete"):
        ensure_vqa(tmp_path, 0, SIZES)
    with pytest.raises(ValueError, match="at least 1"):
        Sizes(train_scenes=0)
