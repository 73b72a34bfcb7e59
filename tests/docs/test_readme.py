"""Figures on the embedded benchmark in README.md and docs/mini.md agree with the committed tables."""

import json
import re
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from functools import cache

import pandas as pd

from tests.support.paths import ROOT

METHODS = {
    "full tuning": "full",
    "frozen classifier": "classifier",
    "BitFit": "bitfit",
    "LoRA": "lora",
    "sequential adapter": "adapter",
    "parallel adapters": "parallel",
    "shallow prompt": "shallow_prompt",
    "deep prompt": "deep_prompt",
    "visual prompt": "vp",
    "ladder side tuning": "lst",
    "DAS": "das",
    "`skip[choice=alignment]`": "skip[choice=alignment]",
    "EAS": "eas",
    "RoE": "roe",
    "PuMer": "pumer",
    "LoRA and ToMe": "lora+tome",
}
SCORES = ("vqa_accuracy", "nlvr2_accuracy", "snli_ve_accuracy", "retrieval_R@1")
README = " ".join((ROOT / "README.md").read_text().split())
MINI = " ".join((ROOT / "docs/mini.md").read_text().split())


@cache
def table(experiment: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / "results" / experiment / "tables/latest.csv").set_index("method")


def rounded(value: float, places: str = "0.1") -> str:
    """`value` rounded to `places`, decimal halves upwards."""
    return str(Decimal(f"{value:.6f}").quantize(Decimal(places), ROUND_HALF_UP))


def cell(experiment: str, method: str, column: str = "vqa_accuracy") -> str:
    return rounded(table(experiment).loc[method, column])


def with_spread(experiment: str, method: str, column: str = "vqa_accuracy") -> str:
    """Without the deviation where there is one seed."""
    mean, spread = cell(experiment, method, column), table(experiment).loc[method, f"{column}_sd"]
    return mean if pd.isna(spread) else f"{mean} ± {rounded(spread)}"


def percent(value: float) -> str:
    figure = rounded(value)
    return "0 %" if figure in ("0.0", "-0.0") else f"{'−' if figure[0] == '-' else '+'}{figure.lstrip('-')} %"


def test_leaderboard_in_readme_agrees_with_the_committed_table() -> None:
    rows = re.findall(r"^\| ([^|]+?) \| (\d[^|]* ± .*) \|$", (ROOT / "README.md").read_text(), re.M)
    measured = table("leaderboard")
    assert {METHODS[name]: tuple(cells.split(" | ")) for name, cells in rows} == {
        method: (
            *(with_spread("leaderboard", method, column) for column in SCORES),
            rounded(measured.loc[method, "updated_parameters"] / 1000),
            *(percent(measured.loc[method, f"{cost}_change_percent"]) for cost in ("macs", "latency")),
        )
        for method in measured.index
    }


def test_findings_agree_with_the_leaderboard() -> None:
    for task, pairs in (
        ("vqa", {"sequential adapter has": "adapter", "full tuning": "full", "LoRA": "lora"}),
        ("nlvr2", {"on NLVR2 LoRA": "lora", "the sequential adapter": "adapter", "full tuning": "full"}),
        ("snli_ve", {"on SNLI-VE full tuning": "full", "LoRA": "lora", "the sequential adapter": "adapter"}),
    ):
        for words, method in pairs.items():
            assert f"{words} {cell('leaderboard', method, f'{task}_accuracy')}" in MINI
    chosen = json.loads((ROOT / "results/leaderboard/tuning.json").read_text())
    gains = {each["method"]: each["scores"][f"{each['scale']:g}"] - each["scores"]["1"] for each in chosen}
    classifier, roe = (rounded(gains.pop(method)) for method in ("classifier", "roe"))
    assert f"the frozen classifier gains {classifier} points on VQA's validation split" in MINI
    assert (
        f"RoE with twice its rate {roe}. All other methods gain {rounded(max(gains.values()))} at the most"
        in MINI
    )
    scores = table("leaderboard")
    ahead = rounded(
        scores.loc["skip[choice=alignment]", "nlvr2_accuracy"] - scores.loc["das", "nlvr2_accuracy"]
    )
    assert f"and {ahead} points ahead on NLVR2" in MINI
    assert f"on NLVR2 it ends {ahead} points above DAS" in README


def test_chance_in_readme_agrees_with_the_committed_notes() -> None:
    notes = (ROOT / "results/leaderboard/tables/latest.md").read_text()
    (scores,) = re.findall(r"^Chance, or always the most frequent answer, scores (.+)\.  $", notes, re.M)
    row = " | ".join(rounded(float(score)) for score in re.findall(r"([\d.]+) \(", scores))
    assert row.count("|") == len(SCORES) - 1
    assert f"| most frequent answer, or chance | {row} |" in README


def test_costs_of_das_agree_with_the_table() -> None:
    less = rounded(-table("leaderboard").loc["das", "macs_change_percent"])
    assert f"DAS skips 2 of 12 blocks: {less} % fewer multiply-accumulates." in README


def test_six_seeds_agree_with_their_table() -> None:
    scores = table("mini-vqa-six-seeds")
    assert set(scores["seeds"]) == {6}
    das, fresh, adapter = (
        cell("mini-vqa-six-seeds", method) for method in ("das", "das[warm_start=false]", "adapter")
    )
    assert f"With six seeds it is level with the sequential adapter on VQA ({das} and {adapter})" in MINI
    lower = scores.loc["das", "vqa_accuracy"] - scores.loc["das[warm_start=false]", "vqa_accuracy"]
    assert f"it is {rounded(lower, '1')} points below ({fresh}, `results/mini-vqa-six-seeds.toml`)" in MINI
    one, other = (with_spread("mini-vqa-six-seeds", method) for method in ("das", "adapter"))
    assert f"DAS has {one} and the sequential adapter {other}" in MINI
    assert (
        f"it has {with_spread('mini-vqa-six-seeds', 'das[warm_start=false]')} with the same six seeds" in MINI
    )


def test_found_and_random_blocks_agree_with_their_tables() -> None:
    found, drawn = (table(f"mini-vqa-{name}-blocks")["vqa_accuracy"] for name in ("found", "random"))
    assert len(drawn) == 30
    keeps_first = drawn[~drawn.index.str.contains("blocks=0+", regex=False)]
    assert (
        f"the pairs it found score {rounded(found.mean())} on VQA, thirty random pairs {rounded(drawn.mean())}, "
        f"and those of the random pairs that keep the first block {rounded(keeps_first.mean())} as well"
    ) in MINI
    assert (
        f"score {rounded(found.min())} to {rounded(found.max())}, {rounded(found.mean())} on average" in MINI
    )
    assert f"{rounded(drawn.min())} to {rounded(drawn.max())}, {rounded(drawn.mean())} on average" in MINI
    four = table("mini-vqa-four-random")["vqa_accuracy"]
    assert f"{rounded(four.min())} to {rounded(four.max())}, {rounded(four.mean())} on average" in MINI


def test_random_weights_agree_with_their_tables() -> None:
    vilt, meter = (with_spread(f"mini-vqa{name}-random-init", "full") for name in ("", "-meter"))
    trained = [cell(experiment, "full") for experiment in ("mini-vqa", "mini-vqa-meter")]
    assert (
        f"From random weights full tuning reaches {vilt} and {meter} on VQA, from the pre-trained weights "
        f"{trained[0]} and {trained[1]}"
    ) in MINI


def test_figures_of_meter_mini_agree_with_their_table() -> None:
    name = "mini-vqa-meter"
    less, faster = (-table(name).loc["das", f"{cost}_change_percent"] for cost in ("macs", "latency"))
    assert (
        f"on VQA full tuning has {with_spread(name, 'full')}, parallel adapters {with_spread(name, 'parallel')}, "
        f"LoRA {with_spread(name, 'lora')}, DAS with 4 of 12 blocks skipped {with_spread(name, 'das')} at "
        f"{rounded(less)} % fewer multiply-accumulates and {rounded(faster)} % less latency, the sequential adapter "
        f"{with_spread(name, 'adapter')}, the frozen classifier {with_spread(name, 'classifier')}."
    ) in MINI


def test_meter_mini_stays_at_chance_on_the_other_tasks() -> None:
    notes = (ROOT / "results/leaderboard-meter/tables/latest.md").read_text()
    chance = re.findall(r"the most frequent answer, or chance, scores ([\d.]+)\.", notes)
    assert len(chance) == len(SCORES)
    for column, score in zip(SCORES[1:], chance[1:], strict=True):
        assert (table("leaderboard-meter")[column] - float(score)).abs().max() <= 2


def test_cells_and_hours_of_the_leaderboards_agree_with_their_records() -> None:
    durations = []
    for path in (ROOT / "results").glob("leaderboard*/cells/*/record.json"):
        times = json.loads(path.read_text())["timestamps"]
        started, finished = (datetime.fromisoformat(times[name]) for name in ("started", "finished"))
        durations.append((finished - started).total_seconds())
    one, two = (rounded(sum(durations) / 3600 / cores) for cores in (1, 2))
    assert (
        f"both leaderboards together ({len(durations)} cells) take {one} hours of one core, or {two} hours on two"
    ) in MINI


def test_first_table_agrees_with_the_committed_records() -> None:
    row = r"^    (lora|das) +([\d.]+) +([\d.]+) +([\d.]+) "
    rows = re.findall(row, (ROOT / "README.md").read_text(), re.M)
    records = [
        json.loads(path.read_text()) for path in (ROOT / "results/first-run/cells").glob("*/record.json")
    ]
    found = {
        record["cell"]["method"]["name"]: record
        for record in records
        if record["cell"]["seed"] == 0 and record["cell"]["task"]["name"] == "vqa"
    }
    assert [name for name, *_ in rows] == ["lora", "das"]
    for name, updated, accuracy, macs in rows:
        record = found[name]
        assert accuracy == f"{record['metrics']['test']['accuracy']:.2f}"
        assert updated == f"{record['parameters']['updated'] / 1000:.2f}"
        assert macs == f"{record['compute']['macs_total'] / 1e6:.2f}"


def test_method_example_is_the_one_that_the_page_on_python_runs() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    page = (ROOT / "docs/python.md").read_text()
    classes = re.findall(r"^class .*?(?=^\S|\Z)", example, re.M | re.S)
    assert len(classes) == 2
    for definition in classes:
        assert definition.strip() in page
