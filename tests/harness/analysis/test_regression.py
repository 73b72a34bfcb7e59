"""The check against a baseline: each kind of regression is found and its size is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from typer.testing import CliRunner

from harness.analysis.baseline import Baseline, BaselineCell, read_baseline, summarize
from harness.analysis.regression import check, describe
from harness.cli.check import check as check_command
from harness.errors import UserError
from harness.records.store import Store
from tests.support.stored_results import make_record, predictions_of, record_of, store_scores

KEPT: dict[str, Any] = {
    "method": "lora",
    "task": "vqa",
    "backbone": "vilt-mini",
    "seed": 0,
    "protocol": "p",
    "metric": "accuracy",
    "higher_is_better": True,
    "score": 60.0,
    "low": 58.0,
    "high": 62.0,
    "parameters": 2_000_000,
    "updated_parameters": 20_000,
    "deployed_parameters": 2_000_000,
    "macs": 1000,
    "tuned_file_bytes": 500,
    "latency_ratio": {"ratio": 1.0, "low": 0.95, "high": 1.05},
}


def cell(**changes: Any) -> BaselineCell:
    return BaselineCell.model_validate({**KEPT, **changes})


def baseline(*cells: BaselineCell) -> Baseline:
    return Baseline(accepted="2025-01-01T00:00:00+00:00", commit=None, platform="Linux", cells=cells)  # type: ignore[arg-type]


def verdicts(before: BaselineCell, after: BaselineCell) -> dict[str, str]:
    return {each.figure: each.verdict for each in check(baseline(before), [after]) if each.verdict != "same"}


def test_equal_results_give_no_findings() -> None:
    findings = check(baseline(cell()), [cell()])
    assert {each.verdict for each in findings} == {"same"}
    assert describe(findings) == "1 cell of the baseline, 7 figures: nothing got worse."


@pytest.mark.parametrize(
    ("score", "higher", "verdict"),
    [
        (57.9, True, "worse"),
        (58.0, True, None),
        (62.0, True, None),
        (62.1, True, "better"),
        (57.9, False, "better"),
        (62.1, False, "worse"),
    ],
)
def test_score_is_compared_with_the_baselines_interval(
    score: float, higher: bool, verdict: str | None
) -> None:
    found = verdicts(cell(higher_is_better=higher), cell(higher_is_better=higher, score=score))
    assert found.get("accuracy") == verdict


@pytest.mark.parametrize(
    ("key", "figure"),
    [
        ("parameters", "parameters"),
        ("updated_parameters", "updated parameters"),
        ("deployed_parameters", "deployed parameters"),
        ("macs", "FLOPs (MACs)"),
        ("tuned_file_bytes", "tuned file (bytes)"),
    ],
)
def test_counts_must_agree_exactly(key: str, figure: str) -> None:
    assert verdicts(cell(), cell(**{key: KEPT[key] + 1})) == {figure: "worse"}
    (fewer,) = [each for each in check(baseline(cell()), [cell(**{key: KEPT[key] - 1})]) if each.fails]
    assert (fewer.figure, fewer.verdict) == (figure, "changed")
    assert verdicts(cell(), cell(**{key: None})) == {figure: "worse"}


@pytest.mark.parametrize(
    ("low", "high", "tolerance", "verdict"),
    [
        (1.16, 1.20, 0.10, "worse"),  # 1.05 · 1.1 = 1.155
        (1.15, 1.20, 0.10, None),
        (1.06, 1.20, 0.0, "worse"),
        (0.80, 0.86, 0.10, "better"),  # 0.95 / 1.1 = 0.8636
        (0.80, 0.87, 0.10, None),
    ],
)
def test_latency_is_worse_if_its_whole_interval_is_above_the_baseline(
    low: float, high: float, tolerance: float, verdict: str | None
) -> None:
    after = cell(latency_ratio={"ratio": (low + high) / 2, "low": low, "high": high})
    found = {each.figure: each.verdict for each in check(baseline(cell()), [after], None, tolerance)}
    assert found["latency ratio"] == (verdict or "same")


def test_latency_that_is_no_longer_measured_is_worse() -> None:
    assert verdicts(cell(), cell(latency_ratio=None)) == {"latency ratio": "worse"}
    assert verdicts(cell(latency_ratio=None), cell()) == {"latency ratio": "new"}
    assert verdicts(cell(latency_ratio=None), cell(latency_ratio=None)) == {}


def test_scores_of_another_protocol_are_not_compared() -> None:
    assert verdicts(cell(), cell(protocol="q", score=10.0)) == {"accuracy": "changed"}


def test_missing_and_new_cells_are_listed() -> None:
    before = baseline(cell(), cell(method="das"), cell(seed=1))
    findings = check(before, [cell(), cell(method="full")], {("vilt-mini", "vqa", "das", 0): "killed"})
    text = describe(findings)
    assert "Missing:\n  das on vqa (vilt-mini), seed 0: failed: killed\n" in text
    assert "  lora on vqa (vilt-mini), seed 1: is not among the results\n" in text
    assert "New:\n  full on vqa (vilt-mini), seed 0: is not in the baseline\n" in text
    assert [each.fails for each in findings if each.figure == "cell"] == [True, True, False]


def test_findings_state_the_difference() -> None:
    after = cell(score=50.0, macs=1100, latency_ratio={"ratio": 1.5, "low": 1.4, "high": 1.6})
    text = describe(check(baseline(cell()), [after]))
    assert "accuracy 50.00, was 60.00 (-10.00 points; interval 58.00 to 62.00)" in text
    assert "FLOPs (MACs) 1,100, was 1,000 (+100, +10.00 %)" in text
    assert "latency ratio 1.500 [1.400, 1.600] of the untouched backbone's, was 1.000" in text
    assert "(+50.0 %)" in text
    assert text.endswith("1 cell of the baseline, 7 figures: 3 figures to fix, or to accept with --update.")


SCORES = [1.0, 0.0, 1.0, 1.0] * 25


@pytest.fixture
def store(tmp_path: Path) -> Store:
    untouched = make_record(p50=10.0).model_dump(mode="json")["latency"]
    return store_scores(
        tmp_path / "results", {("full", 0): SCORES, ("lora", 0): SCORES}, full_latency=untouched
    )


def test_baseline_of_a_folder_has_intervals_and_ratios(store: Store) -> None:
    full, lora = summarize(store, store.records())
    assert (full.method, lora.method) == ("full", "lora")
    assert (full.score, full.parameters, full.macs) == (75.0, 2_480_000, 70_000_000)
    assert full.low < 75 < full.high
    assert lora.latency_ratio is not None
    assert lora.latency_ratio.ratio == pytest.approx(1.2)  # 12 ms beside 10 ms


def test_latency_of_another_measurement_is_no_reference(tmp_path: Path) -> None:
    untouched = make_record(p50=10.0).model_dump(mode="json")["latency"]
    untouched[0]["group"] = "elsewhere"
    store = store_scores(tmp_path, {("full", 0): SCORES}, full_latency=untouched)
    (full,) = summarize(store, store.records())
    assert full.latency_ratio is None


def invoke(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(check_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_baseline_is_accepted_then_checked_then_a_worse_result_fails(store: Store, tmp_path: Path) -> None:
    path, junit = tmp_path / "baseline.json", tmp_path / "junit.xml"
    missing = invoke(store.root, "--baseline", path).exception
    assert isinstance(missing, UserError)
    assert "--update writes a baseline" in str(missing)
    assert invoke(store.root, "--baseline", path, "--update").exit_code == 0
    assert len(read_baseline(path).cells) == 2
    same = invoke(store.root, "--baseline", path)
    assert same.exit_code == 0
    assert "nothing got worse" in same.stdout
    worse = predictions_of([0.0] * 60 + [1.0] * 40)
    store.commit(record_of("lora", 0, worse), predictions=worse, compress=True)
    found = invoke(store.root, "--baseline", path, "--junit", junit)
    assert found.exit_code == 1
    assert "lora on vqa (vilt-mini), seed 0: accuracy 40.00, was 75.00 (-35.00 points" in found.stdout
    root = ElementTree.parse(junit).getroot()
    (suite,) = root.findall("testsuite")
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("vilt-mini.vqa", "14", "2")
    failed = [case for case in suite.findall("testcase") if case.find("failure") is not None]
    assert {case.get("name") for case in failed} == {"accuracy, seed 0", "latency ratio, seed 0"}
    assert invoke(store.root, "--baseline", path, "--update").exit_code == 0
    assert invoke(store.root, "--baseline", path).exit_code == 0


def test_failed_cell_is_reported_with_its_reason(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    invoke(store.root, "--baseline", path, "--update")
    store.commit(make_record("lora", status="failed", error="out of memory", metrics={}))
    done = invoke(store.root, "--baseline", path)
    assert done.exit_code == 1
    assert "lora on vqa (vilt-mini), seed 0: failed: out of memory" in done.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1, column 2: not valid JSON"),
        ("[]", "schema None"),
        (json.dumps({"schema_version": 0}), "schema 0, but this harness reads schema 1"),
        (json.dumps({"schema_version": 1}), "accepted: Field required"),
    ],
)
def test_file_that_is_not_a_baseline_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(content)
    with pytest.raises(UserError) as raised:
        read_baseline(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


def test_empty_results_folder_is_an_error(tmp_path: Path) -> None:
    error = invoke(tmp_path / "none", "--baseline", tmp_path / "b.json").exception
    assert isinstance(error, UserError)
    assert "no finished cells" in str(error)
