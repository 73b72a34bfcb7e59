"""Comparisons and marks in tables, on hand-made scores with known differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from harness.analysis.significance import compare
from harness.cli.compare import compare as compare_command
from harness.errors import UserError
from harness.records.store import Store
from harness.report.columns import Selection
from harness.report.intervals import with_intervals
from harness.report.rendering import render
from harness.report.tables import Table, build_tables
from tests.support.small_table import texts
from tests.support.stored_results import make_record, predictions_of, record_of, store_scores

RANDOM = np.random.default_rng(0)
BASE = RANDOM.integers(0, 2, size=200).astype(float)


def flipped(scores: np.ndarray, count: int, seed: int) -> list[float]:
    """The same scores with those of `count` examples inverted."""
    changed = scores.copy()
    places = np.random.default_rng(seed).choice(len(scores), count, replace=False)
    changed[places] = 1 - changed[places]
    return [float(value) for value in changed]


def better(scores: np.ndarray, count: int) -> list[float]:
    """The same scores with the first `count` wrong examples made right."""
    changed = scores.copy()
    changed[np.flatnonzero(scores == 0)[:count]] = 1
    return [float(value) for value in changed]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three seeds: full and lora differ only by noise, das is 15 points better."""
    scores: dict[tuple[str, int], list[float]] = {}
    for seed in range(3):
        full = np.array(flipped(BASE, 4, seed))
        scores["full", seed] = list(full)
        scores["lora", seed] = flipped(full, 4, 10 + seed)
        scores["das", seed] = better(full, 30)
    return store_scores(tmp_path / "results", scores)


def test_a_real_difference_is_found_and_noise_is_not(store: Store) -> None:
    found, noise = compare(store, [("das", "full"), ("lora", "full")], resamples=1000)
    assert found.difference.estimate == pytest.approx(15)
    assert found.difference.low > 8
    assert found.significant
    assert not noise.significant
    assert noise.difference.low < 0 < noise.difference.high
    assert (found.seeds, found.examples, found.clusters) == ((0, 1, 2), 200, 100)
    assert (found.metric, found.task, found.backbone) == ("accuracy", "vqa", "vilt-mini")


def test_several_pairs_are_corrected(store: Store) -> None:
    (alone,) = compare(store, [("das", "full")], resamples=1000)
    together = compare(store, [("das", "full"), ("lora", "full"), ("das", "lora")], resamples=1000)
    assert alone.adjusted == alone.p_value == 2 / 1001
    assert together[0].adjusted == pytest.approx(3 * 2 / 1001)


def test_the_direction_is_first_minus_second(store: Store) -> None:
    there, back = compare(store, [("das", "full"), ("full", "das")], resamples=500)
    assert there.difference.estimate == -back.difference.estimate
    assert there.p_value == back.p_value


def test_only_common_seeds_are_paired(store: Store) -> None:
    extra = predictions_of([0.0] * 200)
    store.commit(record_of("das", 7, extra), predictions=extra)
    (found,) = compare(store, [("das", "full")], resamples=500)
    assert found.seeds == (0, 1, 2)
    assert found.difference.estimate == pytest.approx(15)


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ([("dass", "full")], {}, "no finished cell of method 'dass'. Did you mean 'das'"),
        ([("das", "das")], {}, "cannot be compared with itself"),
        ([("das", "full")], {"tasks": ["nlvr2"]}, "no finished cell of task 'nlvr2'"),
        ([("das", "full")], {"backbones": ["vilt"]}, "no finished cell of backbone 'vilt'"),
        ([("das", "full")], {"metric": "speed"}, "no metric 'speed'"),
    ],
)
def test_impossible_comparisons_are_errors(
    store: Store, pairs: list[tuple[str, str]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as raised:
        compare(store, pairs, **options)
    assert message in str(raised.value)


def test_other_protocols_are_refused(store: Store) -> None:
    predictions = predictions_of(list(BASE))
    longer = record_of("adapter", 0, predictions, protocol__epochs=20)
    store.commit(longer, predictions=predictions)
    with pytest.raises(
        UserError, match=r"epochs differs.*Compare cells that were run with the same protocol"
    ):
        compare(store, [("adapter", "full")])
    assert len(compare(store, [("das", "full")], resamples=100)) == 1


def test_methods_without_a_common_seed_are_refused(store: Store) -> None:
    predictions = predictions_of(list(BASE))
    store.commit(record_of("adapter", 9, predictions), predictions=predictions)
    with pytest.raises(UserError, match="no seed in common"):
        compare(store, [("adapter", "full")])


def test_methods_without_a_common_task_are_an_error(tmp_path: Path) -> None:
    store = store_scores(tmp_path, {("full", 0): [1.0, 0.0]})
    predictions = predictions_of([1.0, 0.0])
    store.commit(record_of("das", 0, predictions, cell__backbone__name="vilt"), predictions=predictions)
    with pytest.raises(UserError, match="no task and backbone has finished cells of both"):
        compare(store, [("das", "full")])


def only(store: Store) -> Table:
    (table,) = build_tables(store.records())
    return with_intervals(table, store)


def row(table: Table, method: str) -> dict[str, Any]:
    (found,) = [row for row in table.frame.to_dict("records") if row["method"] == method]
    return found


def test_tables_mark_significant_differences_from_full_tuning_and_name_the_test(store: Store) -> None:
    table = only(store)
    das, lora, full = (row(table, name) for name in ("das", "lora", "full"))
    assert das["delta_significant"] is True
    assert lora["delta_significant"] is False
    assert full["delta_significant"] is None
    assert das["vqa_accuracy_low"] < das["vqa_accuracy"] < das["vqa_accuracy_high"]
    assert das["delta_low"] < 15 < das["delta_high"]
    notes = " ".join(texts(table))
    assert "two-level bootstrap, 2,000 resamples; 200 examples in 100 groups" in notes
    assert "* differs from full tuning at the 5 % level (paired two-level bootstrap" in notes
    assert "With 3 seeds only large differences get a star" in notes
    assert "Holm's correction over 2 methods" in notes
    text = render(table, "github", Selection(intervals=True))
    assert f"+15.00\\* [{das['delta_low']:+.2f}, {das['delta_high']:+.2f}]" in text
    assert f"{das['vqa_accuracy_low']:.2f} to {das['vqa_accuracy_high']:.2f}" in text
    assert "$+$15.00$^*$" in render(table, "latex")
    columns = list(table.frame.columns)
    assert columns[columns.index("vqa_accuracy_sd") + 1] == "vqa_accuracy_low"
    assert columns[columns.index("delta_vs_full") + 4] == "delta_significant"


def test_note_for_one_seed_says_that_variance_over_seeds_is_missing(tmp_path: Path) -> None:
    store = store_scores(tmp_path, {("full", 0): list(BASE), ("das", 0): better(BASE, 30)})
    notes = " ".join(texts(only(store)))
    assert "Intervals: 95 % over test examples," in notes
    assert "One seed: the variance of training is not included." in notes


def test_without_predictions_there_is_no_interval_and_a_note(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit(make_record("full"))
    table = only(store)
    assert row(table, "full")["vqa_accuracy_low"] is None
    assert any("vqa: no intervals:" in note and "no such file" in note for note in texts(table))
    assert "interval" not in render(table, "github").splitlines()[2]


def test_an_average_over_tasks_is_tested_as_a_whole(store: Store) -> None:
    for method, own in (("full", list(BASE)), ("das", better(BASE, 10))):
        predictions = [{**each, "label": "true"} for each in predictions_of(own)]
        record = record_of(method, 0, predictions, cell__task__name="nlvr2", cell__id=f"other-{method}")
        store.commit(record, predictions=predictions)
    table = only(store)
    das = row(table, "das")
    assert das["delta_vs_full"] == pytest.approx(10)  # of 15 and 5
    assert das["delta_low"] < 10 < das["delta_high"]
    assert das["delta_significant"] is True
    assert row(table, "lora")["delta_significant"] is None  # has one task only
    assert "nlvr2 (mini) 95 % interval" in render(table, "github", Selection(intervals=True))
    assert "95 % interval" not in render(table, "github")


def invoke(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(compare_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_prints_difference_interval_test_and_sizes(store: Store) -> None:
    done = invoke("das", "full", "lora", "full", "--results", store.root, "--resamples", 500)
    assert done.exit_code == 0, done.exception
    for part in (
        "das − full",
        "+15.00*",
        "p (Holm)",
        "paired two-level bootstrap, two-sided, 500 resamples; Holm's correction over 2 comparisons",
        "das − full, vqa: the same 200 examples in 100 groups, seeds 0, 1, 2.",
    ):
        assert part in done.stdout


def test_odd_number_of_methods_is_an_error(store: Store) -> None:
    error = invoke("das", "full", "lora", "--results", store.root).exception
    assert isinstance(error, UserError)
    assert "'lora' has no partner" in str(error)
