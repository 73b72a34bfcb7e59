"""Learning rates are chosen on validation data, with seeds of their own, and their cost is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import harness
from harness.cli import app
from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment.tuning import choose, tuned_settings, tuning_settings, write_choices
from harness.records.choices import Choice
from harness.records.record import Record
from harness.records.store import Store
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.support.stored_results import make_record


def tuning_run(method: str, seed: int, score: float, **changes: Any) -> Record:
    record = make_record(method, seed=seed)
    metrics = {"val": {"accuracy": score}, "test": {"accuracy": 99.0 - score}}
    return record.model_copy(update={"metrics": metrics, **changes})


def test_the_best_mean_on_validation_is_chosen_and_of_equal_ones_the_smallest() -> None:
    records = {
        2.0: [tuning_run("lora", 5, 40.0), tuning_run("lora", 6, 60.0), tuning_run("full", 5, 7.0)],
        0.5: [tuning_run("lora", 5, 55.0), tuning_run("lora", 6, 41.0), tuning_run("full", 5, 7.0)],
    }
    lora, full = choose(records)
    assert (lora.method, lora.scale, lora.scores) == ("lora", 2.0, {"0.5": 48.0, "2": 50.0})
    assert (lora.seeds, lora.runs) == ((5, 6), 4)
    assert lora.seconds == sum(each.training.seconds for each in records[2.0][:2] + records[0.5][:2])  # type: ignore[union-attr]
    assert (full.method, full.scale) == ("full", 0.5)


def test_a_failed_run_ends_the_choice() -> None:
    failed = tuning_run("lora", 5, 40.0, status="failed", error="out of memory")
    with pytest.raises(UserError, match=r"tuning run \S+ \(lora\) failed: out of memory"):
        choose({1.0: [failed]})


def test_runs_of_tuning_and_of_the_results() -> None:
    settings = make_settings(methods="lora,full", tasks="vqa,nlvr2", seeds=[0, 1], results="found")
    runs = tuning_settings(settings, [0.5, 2.0], [7])
    assert [(scale, run.training.learning_rate_scale, run.seeds) for scale, run in runs.items()] == [
        (0.5, 0.5, (7,)),
        (2.0, 2.0, (7,)),
    ]
    assert {run.output.results for run in runs.values()} == {Path("found/tuning")}
    chosen = {("vqa", "lora"): 2.0, ("vqa", "full"): 0.5, ("nlvr2", "lora"): 0.5, ("nlvr2", "full"): 0.5}
    choices = [
        Choice("vilt-mini", task, method, scale, {}, (7,), 1, 1.0) for (task, method), scale in chosen.items()
    ]
    planned = [
        (run.tasks[0].name, run.training.learning_rate_scale, [spec.name for spec in run.methods], run.seeds)
        for run in tuned_settings(settings, choices)
    ]
    assert planned == [
        ("vqa", 2.0, ["lora"], (0, 1)),
        ("vqa", 0.5, ["full"], (0, 1)),
        ("nlvr2", 0.5, ["lora", "full"], (0, 1)),
    ]


def test_seeds_of_the_results_and_given_rates_are_refused() -> None:
    settings = make_settings(methods="lora", tasks="vqa", seeds=[0, 1])
    with pytest.raises(UserError, match="tuning seeds: 1 is also a seed of the results"):
        tuning_settings(settings, [1.0], [1, 2])
    with pytest.raises(UserError, match="learning_rate: harness tune chooses it"):
        tuning_settings(make_settings(methods="lora", tasks="vqa", learning_rate=0.1), [1.0], [2])


def test_choices_of_other_methods_stay(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.tuning() == []
    write_choices(choose({1.0: [tuning_run("lora", 5, 1.0), tuning_run("full", 5, 1.0)]}), store)
    write_choices(choose({2.0: [tuning_run("lora", 5, 1.0)]}), store)
    assert {each.method: each.scale for each in store.tuning()} == {"full": 1.0, "lora": 2.0}
    for content, message in {
        "{": r"tuning.json: line 1, column 2: not valid JSON",
        '[{"task": "vqa"}]': r"tuning.json: 0.backbone: Field required; delete it",
    }.items():
        (tmp_path / "tuning.json").write_text(content)
        with pytest.raises(UserError, match=message):
            store.tuning()


def test_tune_runs_with_the_chosen_rate_and_the_table_says_so(tmp_path: Path) -> None:
    root = ensure_vqa(tmp_path / "data", sizes=Sizes(40, 2, 3, 1, 3, 1))
    command = ["tune", "--methods", "classifier", "--tasks", "vqa", "--data-root", str(root), "--epochs", "1"]
    command += [
        "--batch-size",
        "16",
        "--accelerator",
        "cpu",
        "--in-process",
        "--results",
        str(tmp_path / "out"),
    ]
    shown = CliRunner().invoke(app, [*command, "--learning-rates", "0.001,3", "--tuning-seeds", "7"])
    assert shown.exit_code == 0, shown.output
    store = Store(tmp_path / "out")
    (record,), runs = store.records(), Store(tmp_path / "out" / "tuning").records()
    assert sorted(run.cell.seed for run in runs) == [7, 7]
    (choice,) = json.loads((tmp_path / "out" / "tuning.json").read_text())
    by_rate = {run.training.learning_rate: run.metrics["val"]["accuracy"] for run in runs}  # type: ignore[union-attr]
    assert sorted(by_rate.values()) == sorted(choice["scores"].values())
    rates = sorted(by_rate)
    expected = dict(zip((0.001, 3.0), rates, strict=True))[choice["scale"]]
    assert record.training.learning_rate == expected  # type: ignore[union-attr]
    assert record.cell.seed == 0
    assert "were chosen on validation data with seeds 7" in " ".join(shown.output.split())
    again = harness.tune(
        methods="classifier",
        tasks="vqa",
        data_root=root,
        epochs=1,
        batch_size=16,
        accelerator="cpu",
        in_process=True,
        results=tmp_path / "out",
        learning_rates=[0.001, 3],
        tuning_seeds=[7],
        progress=False,
    )
    assert again.records == (record,)  # everything had finished


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--learning-rates", "1,1", "learning rates: must be different multiples greater than 0"),
        ("--learning-rates", "0", "learning rates: must be different multiples greater than 0"),
        ("--learning-rates", "nan", "learning rates: must be different multiples greater than 0"),
        ("--learning-rates", "1,x", "--learning-rates: must be numbers separated by commas"),
        ("--tuning-seeds", "x", "--tuning-seeds: must be numbers separated by commas"),
        ("--tuning-seeds", "-1", "tuning seeds: must be different whole numbers from 0 on"),
    ],
)
def test_values_that_do_not_fit_are_refused(option: str, value: str, message: str) -> None:
    shown = CliRunner().invoke(app, ["tune", "--methods", "lora", "--tasks", "vqa", option, value])
    assert isinstance(shown.exception, UserError)
    assert message in str(shown.exception)
