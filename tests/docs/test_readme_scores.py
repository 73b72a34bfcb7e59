"""The README's figures on the embedded benchmark are those of the committed tables."""

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
    "DAS": "das",
}
SCORES = ("vqa_accuracy", "nlvr2_accuracy", "snli_ve_accuracy", "retrieval_R@1")
README = " ".join((ROOT / "README.md").read_text().split())
MINI = " ".join((ROOT / "docs/mini.md").read_text().split())


@cache
def table(experiment: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / "results" / experiment / "tables/latest.csv").set_index("method")


def rounded(value: float, places: str = "0.1") -> str:
    """Halves are rounded up, as one reads them in the table, not as binary fractions happen to lie."""
    return str(Decimal(f"{value:.6f}").quantize(Decimal(places), ROUND_HALF_UP))


def cell(experiment: str, method: str, column: str = "vqa_accuracy") -> str:
    return rounded(table(experiment).loc[method, column])


def with_spread(experiment: str, method: str, column: str = "vqa_accuracy") -> str:
    return f"{cell(experiment, method, column)} ± {cell(experiment, method, f'{column}_sd')}"


def test_the_leaderboard_is_the_committed_table() -> None:
    said = {
        METHODS[name]: tuple(cells.split(" | "))
        for name, cells in re.findall(
            r"^\| ([\w ]+?) \| (.* ± .*) \|$", (ROOT / "README.md").read_text(), re.M
        )
    }
    assert said == {
        method: tuple(with_spread("leaderboard", method, column) for column in SCORES)
        for method in table("leaderboard").index
    }


def test_the_row_of_chance_is_that_of_the_committed_notes() -> None:
    notes = (ROOT / "results/leaderboard/tables/latest.md").read_text()
    scores = re.findall(r"the most frequent answer, or chance, scores ([\d.]+)\.", notes)
    assert len(scores) == len(SCORES)
    row = " | ".join(rounded(float(score)) for score in scores)
    assert f"| most frequent answer, or chance | {row} |" in README


def test_the_costs_of_das_are_those_of_the_first_table() -> None:
    less = rounded(-table("mini-vqa").loc["das", "macs_change_percent"])
    assert f"DAS skips 2 of 12 blocks: {less} % fewer multiply-accumulates on VQA." in README
    more, parallel = (
        rounded(table("mini-vqa").loc[method, "latency_change_percent"], "1")
        for method in ("das", "parallel")
    )
    assert (
        f"{more} % more time than the untouched backbone, where parallel adapters in all blocks cost {parallel} %"
        in README
    )


def test_six_seeds_are_those_of_their_table() -> None:
    scores = table("mini-vqa-six-seeds")
    assert set(scores["seeds"]) == {6}
    das, fresh, adapter = (
        cell("mini-vqa-six-seeds", method) for method in ("das", "das[warm_start=false]", "adapter")
    )
    assert f"with six seeds DAS is level with the sequential adapter on VQA ({das} and {adapter})" in README
    lower = scores.loc["das", "vqa_accuracy"] - scores.loc["das[warm_start=false]", "vqa_accuracy"]
    assert f"it is {rounded(lower, '1')} points below ({fresh}, `results/mini-vqa-six-seeds.toml`)" in README
    one, other = (with_spread("mini-vqa-six-seeds", method) for method in ("das", "adapter"))
    assert f"DAS has {one} and the sequential adapter {other}" in MINI
    assert (
        f"it has {with_spread('mini-vqa-six-seeds', 'das[warm_start=false]')} with the same six seeds" in MINI
    )


def test_found_and_random_blocks_are_those_of_their_tables() -> None:
    found, drawn = (table(f"mini-vqa-{name}-blocks")["vqa_accuracy"] for name in ("found", "random"))
    assert len(drawn) == 30
    keeps_first = drawn[~drawn.index.str.contains("blocks=0+", regex=False)]
    assert (
        f"the pairs it found score {rounded(found.mean())} on VQA, thirty random pairs {rounded(drawn.mean())}, "
        f"those of them that keep the first block {rounded(keeps_first.mean())} as well"
    ) in README
    assert (
        f"score {rounded(found.min())} to {rounded(found.max())}, {rounded(found.mean())} on average" in MINI
    )
    assert f"{rounded(drawn.min())} to {rounded(drawn.max())}, {rounded(drawn.mean())} on average" in MINI
    four = table("mini-vqa-four-random")["vqa_accuracy"]
    assert f"{rounded(four.min())} to {rounded(four.max())}, {rounded(four.mean())} on average" in MINI


def test_random_weights_are_those_of_their_tables() -> None:
    vilt, meter = (with_spread(f"mini-vqa{name}-random-init", "full") for name in ("", "-meter"))
    assert (
        f"From random weights full tuning has {vilt} on VQA (`results/mini-vqa-random-init.toml`)" in README
    )
    trained = [cell(experiment, "full") for experiment in ("leaderboard", "mini-vqa-meter")]
    assert (
        f"From random weights full tuning reaches {vilt} and {meter} on VQA, from the pre-trained weights "
        f"{trained[0]} and {trained[1]}"
    ) in MINI


def test_meter_minis_figures_are_those_of_their_table() -> None:
    name = "mini-vqa-meter"
    less, faster = (-table(name).loc["das", f"{cost}_change_percent"] for cost in ("macs", "latency"))
    assert (
        f"full tuning has {with_spread(name, 'full')} on VQA, parallel adapters {with_spread(name, 'parallel')}, "
        f"LoRA {with_spread(name, 'lora')}, DAS with 4 of 12 blocks skipped {with_spread(name, 'das')} at "
        f"{rounded(less)} % fewer multiply-accumulates and {rounded(faster)} % less latency, the sequential adapter "
        f"{with_spread(name, 'adapter')}, the frozen classifier {with_spread(name, 'classifier')}."
    ) in README


def test_on_the_other_tasks_meter_mini_stays_at_chance() -> None:
    notes = (ROOT / "results/leaderboard-meter/tables/latest.md").read_text()
    chance = re.findall(r"the most frequent answer, or chance, scores ([\d.]+)\.", notes)
    assert len(chance) == len(SCORES)
    for column, score in zip(SCORES[1:], chance[1:], strict=True):
        assert (table("leaderboard-meter")[column] - float(score)).abs().max() <= 2


def test_the_number_of_cells_is_that_of_the_tables() -> None:
    cells = {
        name: int((table(name)["seeds"] * sum(column in table(name) for column in SCORES)).sum())
        for name in ("mini-vqa", "leaderboard", "leaderboard-meter")
    }
    assert f"the command behind the table above ({cells['mini-vqa']} cells" in README
    assert f"Both leaderboards together, {cells['leaderboard'] + cells['leaderboard-meter']} cells" in README


def test_the_hours_of_the_leaderboards_are_those_of_their_records() -> None:
    seconds = 0.0
    for path in (ROOT / "results").glob("leaderboard*/cells/*/record.json"):
        times = json.loads(path.read_text())["timestamps"]
        started, finished = (datetime.fromisoformat(times[name]) for name in ("started", "finished"))
        seconds += (finished - started).total_seconds()
    one, two = (rounded(seconds / 3600 / cores) for cores in (1, 2))
    assert f"by their records {one} hours of one core's work, {two} hours on the two cores" in README
