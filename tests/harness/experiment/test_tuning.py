"""Learning rates are chosen on validation data, with seeds of their own, and their cost is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import harness
from harness.cli import app
from harness.config import RunSettings
from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment.plan import build_cells, open_testbeds
from harness.experiment.published import RATES, by_recipe
from harness.experiment.rates import label_of, rate_multiple
from harness.experiment.tuning import (
    choose,
    extended_settings,
    keep_choices,
    tune,
    tuning_settings,
    write_choices,
)
from harness.records.choices import Choice
from harness.records.record import Record
from harness.records.store import Store
from harness.registry import build_method
from harness.report.tuning import tuning_sentence
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
    assert all(run.tasks == settings.tasks for run in runs.values())
    assert [run.tasks[0].name for run in tuning_settings(settings, [0.5], [7], "nlvr2").values()] == ["nlvr2"]
    with pytest.raises(UserError, match="tune_on: pope is not a task of the run, which has vqa, nlvr2"):
        tuning_settings(settings, [0.5], [7], "pope")


def test_every_method_runs_with_what_was_chosen_for_it(tmp_path: Path) -> None:
    file = tmp_path / "tuning.json"

    def choice(task: str, method: str, scale: float, *tasks: str) -> Choice:
        return Choice("vilt-mini", task, method, scale, {}, (7,), 1, 1.0, tasks)

    write_choices(
        [choice("vqa", "lora[r=8]", 2.0, "vqa", "snli_ve"), choice("vqa", "full", 0.5)], Store(tmp_path)
    )
    settings = make_settings(methods="lora[r=8],full", tasks="vqa", tuned_rates=file, learning_rate_scale=3.0)
    lora, full = build_cells(settings, open_testbeds(settings))
    plain = make_settings(methods="lora[r=8],full", tasks="vqa")
    plain_lora, plain_full = build_cells(plain, open_testbeds(plain))
    assert lora.learning_rate == pytest.approx(6.0 * plain_lora.learning_rate)
    assert full.learning_rate == pytest.approx(1.5 * plain_full.learning_rate)
    assert rate_multiple(settings, "snli_ve", "lora[r=8]") == 6.0  # chosen on VQA, for both
    with pytest.raises(
        UserError, match=r"tuning.json has no learning rate for full on snli_ve with vilt-mini"
    ):
        rate_multiple(settings, "snli_ve", "full")
    missing = make_settings(methods="full", tasks="vqa", tuned_rates=tmp_path / "none.json")
    with pytest.raises(UserError, match=r"tuned_rates: \S+none.json: no such file; `harness tune` writes it"):
        rate_multiple(missing, "vqa", "full")
    with pytest.raises(UserError, match="tuned_rates: multiplies default learning rates; drop learning_rate"):
        make_settings(methods="full", tasks="vqa", tuned_rates=file, learning_rate=0.1)


def test_one_task_decides_for_all(tmp_path: Path) -> None:
    file = tmp_path / "tuning.json"
    experiment = make_settings(methods="lora", tasks="vqa,nlvr2", results=tmp_path, tuned_rates=file)
    asked: list[tuple[list[str], float, Path | None, bool]] = []

    def run(settings: RunSettings, /, *, latencies: bool) -> list[Record]:
        training = settings.training
        tasks = [task.name for task in settings.tasks]
        asked.append((tasks, training.learning_rate_scale, training.tuned_rates, latencies))
        return [tuning_run("lora", 1000, 50.0 - training.learning_rate_scale)]

    tune(experiment, [2.0, 0.5], [1000], run, "vqa")
    assert asked == [
        (["vqa"], 2.0, None, False),
        (["vqa"], 0.5, None, False),
        (["vqa", "nlvr2"], 1.0, file, True),
    ]
    (choice,) = Store(tmp_path).tuning()
    assert (choice.task, choice.tasks, choice.scale) == ("vqa", ("vqa", "nlvr2"), 0.5)
    records = [tuning_run("lora", 0, 1.0)]
    assert (
        "chosen on validation data of vqa, for all tasks, with seeds 1000: lora 0.5 of 0.5/2."
        in tuning_sentence(records, Store(tmp_path))
    )


def test_the_next_multiple_is_tried_where_the_best_is_at_the_edge(tmp_path: Path) -> None:
    best = {"full": 1.0, "lora": 4.0, "bitfit": 0.1}
    experiment = make_settings(methods="full,lora,bitfit", tasks="vqa", results=tmp_path)
    asked: list[tuple[float, list[str]]] = []

    def run(settings: RunSettings, /, *, latencies: bool) -> list[Record]:
        scale, names = settings.training.learning_rate_scale, [spec.name for spec in settings.methods]
        if not latencies:
            asked.append((scale, names))
        return [tuning_run(name, 1000, 50.0 - abs(scale - best[name])) for name in names]

    tune(experiment, [0.5, 1.0, 2.0], [1000], run, extend=2)
    everything = ["full", "lora", "bitfit"]
    assert asked[:3] == [(0.5, everything), (1.0, everything), (2.0, everything)]
    # Twice, each method on its own side: lora ends inside its multiples' range only after 8.
    assert sorted(asked[3:]) == [(0.125, ["bitfit"]), (0.25, ["bitfit"]), (4.0, ["lora"]), (8.0, ["lora"])]
    chosen = {
        choice.method: (choice.scale, sorted(map(float, choice.scores)))
        for choice in Store(tmp_path).tuning()
    }
    assert chosen == {
        "full": (1.0, [0.5, 1.0, 2.0]),
        "lora": (4.0, [0.5, 1.0, 2.0, 4.0, 8.0]),
        "bitfit": (0.125, [0.125, 0.25, 0.5, 1.0, 2.0]),
    }
    with pytest.raises(UserError, match="extend: needs two multiples"):
        tune(experiment, [1.0], [1000], run, extend=1)


@pytest.mark.parametrize(
    ("methods", "recipe", "label"),
    [("das", "published", "das[variant=published]"), ("das,lora", "own", "das")],
)
def test_the_whole_run_decides_which_recipe_all_of_its_parts_have(
    methods: str, recipe: str, label: str, tmp_path: Path
) -> None:
    """Alone, DAS has a published recipe on METER; beside LoRA, which has none, it does not."""
    experiment = make_settings(methods=methods, tasks="nlvr2,vqa", backbone="meter", results=tmp_path)
    (run,) = tuning_settings(experiment, [1.0], [7], "nlvr2").values()
    assert {part.recipe for part in by_recipe(run)} == {recipe}
    best = Choice("meter", "nlvr2", label, 2.0, {"1": 1.0, "2": 2.0}, (7,), 2, 1.0)
    ((scale, extended),) = extended_settings(run, [best])
    (part,) = by_recipe(extended)
    assert (scale, part.recipe) == (4.0, recipe)
    assert [label_of(spec, build_method(spec)) for spec in part.methods] == [label]


def test_choices_from_elsewhere_are_copied_to_the_results(tmp_path: Path) -> None:
    elsewhere, results = Store(tmp_path / "tuned"), Store(tmp_path / "results")
    write_choices([Choice("vilt-mini", "vqa", "lora", 2.0, {}, (7,), 1, 1.0)], elsewhere)
    settings = make_settings(methods="lora", tasks="vqa", tuned_rates=elsewhere.tuning_file)
    keep_choices(settings, results)
    assert results.tuning() == elsewhere.tuning()
    before = elsewhere.tuning_file.stat().st_mtime_ns
    keep_choices(settings, elsewhere)  # where they are already
    assert elsewhere.tuning_file.stat().st_mtime_ns == before


def test_published_rates_are_multiplied_too(tmp_path: Path) -> None:
    settings = make_settings(methods="das", tasks="nlvr2", backbone="meter", recipe="published")
    (published,) = by_recipe(settings)
    (label,) = (label_of(spec, build_method(spec)) for spec in published.methods)
    write_choices([Choice("meter", "nlvr2", label, 2.0, {}, (7,), 1, 1.0)], Store(tmp_path))
    tuned = settings.training.model_copy(update={"tuned_rates": tmp_path / "tuning.json"})
    (doubled,) = by_recipe(settings.model_copy(update={"training": tuned}))
    for key in RATES:
        rate = getattr(published.training, key)
        assert getattr(doubled.training, key) == (None if rate is None else 2 * rate)
    assert published.training.learning_rate is not None


def test_seeds_of_the_results_and_given_rates_are_refused() -> None:
    settings = make_settings(methods="lora", tasks="vqa", seeds=[0, 1])
    with pytest.raises(UserError, match="tuning seeds: 1 is also a seed of the results"):
        tuning_settings(settings, [1.0], [1, 2])
    for key, value in {"learning_rate": 0.1, "learning_rate_scale": 2, "tuned_rates": "tuning.json"}.items():
        with pytest.raises(UserError, match=f"{key}: harness tune chooses the learning rates"):
            tuning_settings(make_settings(methods="lora", tasks="vqa", **{key: value}), [1.0], [2])


def test_choices_of_other_methods_stay(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.tuning() == []
    write_choices(choose({1.0: [tuning_run("lora", 5, 1.0), tuning_run("full", 5, 1.0)]}), store)
    write_choices(choose({2.0: [tuning_run("lora", 5, 1.0)]}), store)
    assert {each.method: each.scale for each in store.tuning()} == {"full": 1.0, "lora": 2.0}
    everywhere = Choice("vilt-mini", "nlvr2", "full", 4.0, {}, (7,), 1, 1.0, ("vqa", "nlvr2"))
    write_choices([everywhere], store)  # takes the place of what was chosen on VQA
    assert {(each.task, each.method, each.scale) for each in store.tuning()} == {
        ("nlvr2", "full", 4.0),
        ("vqa", "lora", 2.0),
    }
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
