"""Edited and damaged annotations of every task are read or named on one line, for training and for scoring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.registry import build_task, resolve_scorer
from harness.specs import Spec
from tasks.mini.nlvr2 import Sizes as NLVR2Sizes
from tasks.mini.nlvr2 import ensure_nlvr2
from tasks.mini.pope import Sizes as POPESizes
from tasks.mini.pope import ensure_pope
from tasks.mini.retrieval import Sizes as RetrievalSizes
from tasks.mini.retrieval import ensure_retrieval
from tasks.mini.scienceqa import Sizes as ScienceQASizes
from tasks.mini.scienceqa import ensure_scienceqa
from tasks.mini.snli_ve import Sizes as SNLIVESizes
from tasks.mini.snli_ve import ensure_snli_ve
from tasks.mini.vqa import Sizes as VQASizes
from tasks.mini.vqa import ensure_vqa
from tests.support.fuzzing import at_most_a_user_error, cases, changed_json, damaged

MAKERS = {
    "vqa": lambda folder: ensure_vqa(folder, sizes=VQASizes(6, 2, 2, 2, 2, 2)),
    "nlvr2": lambda folder: ensure_nlvr2(folder, sizes=NLVR2Sizes(1, 1, 1)),
    "snli_ve": lambda folder: ensure_snli_ve(folder, sizes=SNLIVESizes(1, 1, 1)),
    "retrieval": lambda folder: ensure_retrieval(folder, sizes=RetrievalSizes(2, 1, 1)),
    "pope": lambda folder: ensure_pope(folder, sizes=POPESizes(2, 1, 1)),
    "scienceqa": lambda folder: ensure_scienceqa(folder, sizes=ScienceQASizes(4, 2, 2)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded data of every task, with very few examples."""
    return {task: make(tmp_path_factory.mktemp(task)) for task, make in MAKERS.items()}


@st.composite
def edited(draw: Any, content: bytes) -> bytes:
    """An annotation file with a few values changed, or a few bytes."""
    if draw(st.booleans()):
        return draw(damaged(content))
    lines = content.decode().splitlines()
    try:
        return json.dumps(draw(changed_json(json.loads(content)))).encode()
    except ValueError:  # JSON lines
        place = draw(st.integers(0, len(lines) - 1))
        lines[place] = json.dumps(draw(changed_json(json.loads(lines[place]))))
        return "\n".join(lines).encode()


@pytest.mark.parametrize("task", MAKERS)
@cases(60)
@given(data=st.data())
def test_edited_annotations(folders: dict[str, Path], tmp_path: Path, task: str, data: st.DataObject) -> None:
    paths = sorted(path for path in folders[task].rglob("*.json*") if path.is_file())
    path = data.draw(st.sampled_from(paths))
    sound = path.read_bytes()
    try:
        path.write_bytes(data.draw(edited(sound)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
            with at_most_a_user_error():
                build_task(Spec(task)).load(folders[task])
        if (files := resolve_scorer(task).files) is not None:
            with at_most_a_user_error():
                files.read_truths(path)
            with at_most_a_user_error():
                files.read_submission(path)
    finally:
        path.write_bytes(sound)
