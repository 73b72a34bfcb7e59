"""The README's scores on the embedded benchmark are those of the committed records."""

import re
from collections import defaultdict
from statistics import mean, stdev

from harness.records.store import Store
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
TASKS = ("vqa", "nlvr2", "snli_ve", "retrieval")


def test_the_readmes_scores_are_those_of_the_leaderboard() -> None:
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in Store(ROOT / "results/leaderboard").records():
        asked = record.cell.task
        scores[record.cell.method.label, asked.name].append(record.metrics["test"][asked.primary_metric])
    said: dict[tuple[str, str], str] = {}
    for name, cells in re.findall(r"^\| ([\w ]+?) \| (.* ± .*) \|$", (ROOT / "README.md").read_text(), re.M):
        for task, cell in zip(TASKS, cells.split(" | "), strict=True):
            said[METHODS[name], task] = cell
    measured = {key: f"{mean(values):.1f} ± {stdev(values):.1f}" for key, values in scores.items()}
    assert said == measured
