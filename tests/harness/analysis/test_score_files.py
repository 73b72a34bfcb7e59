"""Scoring of prediction files, the harness's and official submissions, against the official annotations."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.analysis import score_files as scoring
from harness.analysis.score_files import Scored, score_files
from harness.cli import app
from harness.errors import UserError
from tasks.scorer import Scorer
from tests.support.paths import ROOT


def json_lines(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


@pytest.fixture
def vqa(tmp_path: Path) -> Path:
    """Question 1: ten times "two"; question 2: three of ten say "cat"."""
    given = {1: ["two"] * 10, 2: ["cat"] * 3 + ["dog"] * 7}
    annotations = [
        {
            "question_id": question,
            "answer_type": "number" if question == 1 else "other",
            "multiple_choice_answer": answers[-1],
            "answers": [{"answer": answer, "answer_id": k} for k, answer in enumerate(answers)],
        }
        for question, answers in given.items()
    ]
    path = tmp_path / "v2_mscoco_val2014_annotations.json"
    path.write_text(json.dumps({"annotations": annotations}))
    return path


@pytest.fixture
def nlvr2(tmp_path: Path) -> Path:
    labels = {"dev-1-0-0": "True", "dev-1-1-0": "False", "dev-2-0-0": "True"}
    entries = [{"identifier": name, "sentence": "s", "label": label} for name, label in labels.items()]
    return json_lines(tmp_path / "dev.json", *entries)


def test_vqa_scores_of_both_formats_by_hand(tmp_path: Path, vqa: Path) -> None:
    # "cat": leave-one-out, 7 subsets with 3 matches and 3 with 2.
    expected = Scored({"accuracy": pytest.approx(95), "number": 100, "other": pytest.approx(90)}, 2, 0, 0)
    official = tmp_path / "official.json"
    official.write_text(
        json.dumps([{"question_id": 2, "answer": "cat"}, {"question_id": 1, "answer": "two"}])
    )
    assert score_files("vqa", official, vqa) == expected
    ours = json_lines(
        tmp_path / "predictions.jsonl",
        {"id": "1", "group": "5", "answer": "two", "score": 0.0},  # a wrong score is not believed
        {"id": "2", "group": "5", "answer": "cat", "score": 1.0},
    )
    assert score_files("vqa", ours, vqa) == expected
    packed = tmp_path / "predictions.jsonl.gz"
    packed.write_bytes(gzip.compress(ours.read_bytes()))
    assert score_files("vqa", packed, vqa) == expected


def test_nlvr2_scores_of_both_formats_by_hand(tmp_path: Path, nlvr2: Path) -> None:
    answers = {"dev-1-0-0": "True", "dev-1-1-0": "True", "dev-2-0-0": "True"}
    expected = Scored({"accuracy": pytest.approx(200 / 3), "consistency": 50}, 3, 0, 0)
    official = tmp_path / "predictions.csv"
    official.write_text("".join(f"{name},{label.lower()}\n" for name, label in answers.items()))
    assert score_files("nlvr2", official, nlvr2) == expected
    lines = [{"id": name, "prediction": label} for name, label in answers.items()]
    assert score_files("nlvr2", json_lines(tmp_path / "p.jsonl", *lines), nlvr2) == expected


def test_subset_is_scored_from_predictions_of_the_whole_split(tmp_path: Path, nlvr2: Path) -> None:
    official = tmp_path / "predictions.csv"
    official.write_text("dev-1-0-0,True\ndev-1-1-0,True\ndev-2-0-0,True\n")
    balanced = tmp_path / "balanced_dev.json"
    balanced.write_text("\n".join(nlvr2.read_text().splitlines()[::2]))
    assert score_files("nlvr2", official, balanced) == Scored({"accuracy": 100, "consistency": 100}, 2, 0, 1)


def test_snli_ve_scores_of_both_formats_by_hand(tmp_path: Path) -> None:
    entries = [
        {"pairID": str(k), "gold_label": label, "sentence2": "h", "Flickr30K_ID": "1"}
        for k, label in enumerate(["neutral", "neutral", "entailment", "-"])
    ]
    annotations = json_lines(tmp_path / "snli_ve_test.jsonl", *entries)
    given = {"0": "neutral", "1": "contradiction", "2": "entailment"}
    expected = Scored({"accuracy": pytest.approx(200 / 3), "entailment": 100, "neutral": 50}, 3, 0, 0)
    ours = [{"id": pair, "prediction": label} for pair, label in given.items()]
    theirs = [{"pairID": pair, "prediction": label} for pair, label in given.items()]
    assert score_files("snli_ve", json_lines(tmp_path / "a.jsonl", *ours), annotations) == expected
    assert score_files("snli_ve", json_lines(tmp_path / "b.jsonl", *theirs), annotations) == expected


def test_nlvr_scores_by_hand(tmp_path: Path) -> None:
    entry = {"identifier": "4-0", "sentence": "s", "label": "true", "directory": "1"}
    annotations = json_lines(tmp_path / "test.json", entry, {**entry, "identifier": "5-1"})
    rows = [(f"test-{name}-{k}.png", "true") for name in ("4-0", "5-1") for k in range(6)]
    rows[8] = (rows[8][0], "false")
    official = tmp_path / "p.csv"
    official.write_text("".join(f"{name},{label}\n" for name, label in rows))
    metrics = score_files("nlvr", official, annotations).metrics
    assert metrics == pytest.approx(
        {"accuracy": 100 * 11 / 12, "consistency": 50, "consistency (orders)": 50}
    )


def test_missing_predictions_are_an_error_unless_partial_scoring_is_requested(
    tmp_path: Path, nlvr2: Path
) -> None:
    few = tmp_path / "few.csv"
    few.write_text("dev-1-1-0,False\n")
    with pytest.raises(UserError, match=r"few\.csv: 2 of the 3 examples of .*dev\.json have no prediction"):
        score_files("nlvr2", few, nlvr2)
    assert score_files("nlvr2", few, nlvr2, partial=True) == Scored(
        {"accuracy": 100, "consistency": 100}, 1, 2, 0
    )
    other = tmp_path / "other.csv"
    other.write_text("test1-1-1-0,False\n")
    with pytest.raises(UserError, match=r"none of its 1 examples is in .*dev\.json"):
        score_files("nlvr2", other, nlvr2, partial=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"p\.csv: the file is empty"),
        ("dev-1-0-0,True\ndev-1-0-0,True\n", r"p\.csv: line 2: 'dev-1-0-0' appears twice"),
        ("dev-1-0-0,True,0.9\n", r"p\.csv: line 1: expected identifier,prediction, not 3 columns"),
        ("dev-1-0-0,Yes\n", r"p\.csv: line 1: a label is True or False, not 'Yes'"),
        ('{"id": "dev-1-0-0"}\n', r"p\.csv: line 1: missing key 'prediction'"),
        ('{"id": "a", "prediction": "True"}\n' * 2, r"p\.csv: line 2: id 'a' appears twice"),
        ('{"id": "a", "prediction": "True"}\n{', r"p\.csv: line 2, column 2: not valid JSON"),
    ],
)
def test_bad_predictions_give_an_error_that_names_them(
    tmp_path: Path, nlvr2: Path, content: str, message: str
) -> None:
    path = tmp_path / "p.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        score_files("nlvr2", path, nlvr2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question_id": 1}', "expected a list of objects with 'question_id' and 'answer'"),
        ('[{"question_id": "1", "answer": "a"}]', r"\[0\]: 'question_id' must be an integer, not \"1\""),
        ('[{"question_id": 1, "answer": 2}]', r"\[0\]: 'answer' must be a string, not 2"),
        (
            '[{"question_id": 1, "answer": "a"}, {"question_id": 1, "answer": "b"}]',
            r"\[1\]: question_id 1 appears twice",
        ),
    ],
)
def test_bad_vqa_submissions_give_an_error_that_names_them(
    tmp_path: Path, vqa: Path, content: str, message: str
) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        score_files("vqa", path, vqa)


def test_unknown_task_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"there is no task 'vqa2'\. Did you mean 'vqa'"):
        score_files("vqa2", tmp_path / "p", tmp_path / "a")
    monkeypatch.setattr(scoring, "resolve_scorer", lambda name: Scorer(lambda predictions: {}))
    with pytest.raises(UserError, match="mine: cannot be scored from files"):
        score_files("mine", tmp_path / "p", tmp_path / "a")


def test_command_prints_metrics_and_the_number_of_unscored_predictions(tmp_path: Path, nlvr2: Path) -> None:
    few = tmp_path / "few.csv"
    few.write_text("dev-1-0-0,True\ndev-1-1-0,True\ntest1-1-1-0,False\n")
    arguments = ["score", "--task", "nlvr2", "--predictions", str(few), "--annotations", str(nlvr2)]
    outcome = CliRunner().invoke(app, [*arguments, "--partial"], catch_exceptions=False)
    assert outcome.exit_code == 0
    assert outcome.stdout == "accuracy\t50.0000\nconsistency\t0.0000\nexamples\t2\n"
    assert "1 annotated examples have no prediction" in outcome.stderr
    assert "1 predictions have no annotation" in outcome.stderr


def test_scoring_needs_no_torch() -> None:
    code = (
        "import sys; from harness.analysis.score_files import find_files; from harness.registry import names; "
        "[find_files(task) for task in names('tasks')]; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"
