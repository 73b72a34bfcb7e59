"""A finished cell is evaluated on official test splits that it was not trained with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment.evaluate import evaluate_cell
from harness.experiment.plan import build_cells, open_testbeds
from harness.experiment.runner import run_cells
from harness.records.store import Store
from tests.support.reporters import Notes
from tests.support.tiny_tasks import make_tiny


@pytest.fixture
def trained(tmp_path: Path) -> tuple[str, Path, Path]:
    """A cell's id, its results folder, and its data, which hold questions about two images for the server."""
    root = make_tiny("vqa", tmp_path / "data")
    settings = make_settings(
        methods="classifier", tasks="vqa", data_root=root, epochs=1, backbone="vilt-mini", accelerator="cpu"
    )
    (cell,) = build_cells(settings, open_testbeds(settings))
    run_cells([cell], Store(tmp_path / "results"), Notes())
    images = [int(path.stem.rpartition("_")[2]) for path in (root / "test2015").iterdir()][:2]
    questions = [{"question_id": 9 - k, "image_id": images[k % 2], "question": "what?"} for k in range(3)]
    path = root / "v2_OpenEnded_mscoco_test-dev2015_questions.json"
    path.write_text(json.dumps({"questions": questions}))
    return cell.id, tmp_path / "results", root


def test_the_servers_file_answers_each_question_of_the_official_split(
    trained: tuple[str, Path, Path], tmp_path: Path
) -> None:
    cell, results, root = trained
    path = tmp_path / "answers.json"
    assert evaluate_cell(cell, results, "test-dev2015", root, None, None, path) == {}
    content = json.loads(path.read_text())
    assert [each["question_id"] for each in content] == [7, 8, 9]
    assert all(set(each) == {"question_id", "answer"} and each["answer"] for each in content)
    shown = CliRunner().invoke(
        app,
        ["evaluate", cell, "--results", str(results), "--data-root", str(root), "--split", "test-dev2015"],
    )
    assert "no annotations" in shown.output
    own = evaluate_cell(cell, results, "test", root, None, None, None)
    assert evaluate_cell(cell, results, "test2015", root, None, None, None) == own
    with pytest.raises(UserError, match="one of val, test, test-dev2015, test2015; not 'train'"):
        evaluate_cell(cell, results, "train", root, None, None, None)
