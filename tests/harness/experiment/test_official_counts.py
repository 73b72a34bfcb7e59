"""Data of the official counts: the second load is fast and small, and every published recipe has a dry run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.official_counts import WRITERS
from tests.support.paths import ROOT, SHARED, needs_shared_data

RECIPES = ROOT / "results" / "recipes"
VOCABULARIES = {"vilt": "bert-base-uncased", "meter": "roberta-base"}
TRAINED = {"vqa": 394_452, "nlvr2": 86_373, "snli_ve": 529_527, "retrieval": 566_767}
"""Training examples; of VQA those that have an answer in the vocabulary and are not held out."""

LOAD = """
import resource, sys, time
from pathlib import Path
from harness.registry import build_task
from harness.specs import parse_spec
task = build_task(parse_spec(sys.argv[1]))
started = time.process_time()
data = task.load(Path(sys.argv[2]))
seconds, kib = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(data.splits["train"]), seconds, kib / 2**20)
"""


def python(folder: Path, *arguments: str) -> str:
    """What a new process prints; its cache is in `folder`."""
    environment = {
        **os.environ,
        "HARNESS_CACHE": str(folder / "cache"),
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    result = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.long
@pytest.mark.timeout(3600)
@needs_shared_data
@pytest.mark.parametrize("task", WRITERS)
def test_data_of_the_official_counts(task: str, tmp_path: Path) -> None:
    # In a process of its own: a process started by one that has used much memory reports that as its own.
    python(tmp_path, "-m", "tests.support.official_counts", str(tmp_path / "data"), task)
    data = tmp_path / "data" / task
    python(tmp_path, "-c", LOAD, task, str(data))
    trained, seconds, gib = map(float, python(tmp_path, "-c", LOAD, task, str(data)).split())
    assert trained == TRAINED[task]
    print(f"{task}: the second load takes {seconds:.1f} CPU seconds and {gib:.2f} GiB")
    assert gib < 1
    for recipe in sorted(RECIPES.glob(f"*-{task.replace('_', '-')}.toml")):
        backbone = recipe.stem.split("-")[1]
        # Random weights have no head for matching that ranking could start from.
        spec = "retrieval[rank_head=random]" if task == "retrieval" else task
        said = python(
            *(tmp_path, "-m", "harness", "run", str(recipe), "--dry-run", "--data-root", str(data)),
            *("--weights", "random", "--tokenizer", str(SHARED / "tokenizers" / VOCABULARIES[backbone])),
            *("--tasks", spec, "--results", str(tmp_path / "results")),
        )
        assert f"{TRAINED[task]} train" in said
        assert "one GPU: " in said
        assert "Slurm, one job with one GPU per cell: 1 × " in said
