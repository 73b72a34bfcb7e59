"""Runs on a real Slurm with two nodes, started for the test in namespaces of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.records.store import WEIGHTS, Store
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.support import slurm_cluster
from tests.support.paths import ROOT

if reason := slurm_cluster.missing():
    pytest.skip(f"no Slurm can be started here: {reason}", allow_module_level=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_vqa(tmp_path_factory.mktemp("data"), sizes=Sizes(40, 2, 6, 2, 6, 2))


def on_cluster(folder: Path, script: str) -> str:
    """Run a shell script on a cluster of its own, in `folder`; returns what it printed."""
    (folder / "script.sh").write_text(f"cd {folder}\n{script}")
    result = subprocess.run(
        [sys.executable, slurm_cluster.__file__, str(folder / "slurm"), "bash", str(folder / "script.sh")],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        },
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def command(data: Path, methods: str) -> str:
    return (
        f"{sys.executable} -m harness run --methods {methods} --tasks vqa --data-root {data} --epochs 1 "
        "--accelerator cpu --launcher slurm --slurm-cpus 1 --results results"
    )


@pytest.mark.timeout(300)
def test_jobs_outlive_the_process_that_submitted_them_and_are_found_again(data: Path, tmp_path: Path) -> None:
    run = command(data, "classifier,bitfit")
    script = f"""
{run} --wait > first.txt 2>&1 & first=$!
until grep -q "jobs submitted" first.txt; do sleep 0.2; done
kill -9 $first
cp results/slurm/jobs.json before.json
{run} --wait > second.txt 2>&1; echo "status $?"
cmp before.json results/slurm/jobs.json && echo "no job was submitted twice"
squeue --me --noheader --array --states=all --format='%F %K %T' | sort
"""
    said = on_cluster(tmp_path, script)
    second = (tmp_path / "second.txt").read_text()
    assert "status 0" in said, second
    assert "no job was submitted twice" in said
    # Two cells in one array, then the job that measures their latencies.
    assert said.splitlines()[-3:] == ["1 0 COMPLETED", "1 1 COMPLETED", "2 N/A COMPLETED"]
    assert "submitted" not in second
    records = Store(tmp_path / "results").records()
    assert [record.status for record in records] == ["finished", "finished"]
    assert all(record.latency for record in records)


@pytest.mark.timeout(300)
def test_a_preempted_job_is_queued_again_and_resumes_where_it_was(data: Path, tmp_path: Path) -> None:
    run = command(data, "lora").replace("--epochs 1", "--epochs 15")
    script = f"""
{run} --wait > run.txt 2>&1 & run=$!
until grep -q '"epoch"' results/slurm/progress/*.jsonl 2>/dev/null; do sleep 0.1; done
sbatch --quiet --partition=high --nodes=2 --wrap 'sleep 1' --output=/dev/null
wait $run; echo "status $?"
scontrol show job 1 | grep -o 'Restarts=[0-9]*'
"""
    said = on_cluster(tmp_path, script)
    seen = (tmp_path / "run.txt").read_text()
    assert "status 0" in said, seen
    assert "Restarts=1" in said
    assert "queued again" in seen
    (record,) = Store(tmp_path / "results").records()
    here = tmp_path / "here"
    local = run.replace("--launcher slurm --slurm-cpus 1", "--jobs 1").replace(
        "--results results", f"--results {here}"
    )
    subprocess.run(local.split(), check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    uninterrupted, resumed = Store(here), Store(tmp_path / "results")
    assert list(resumed.predictions(record.cell.id)) == list(uninterrupted.predictions(record.cell.id))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_nodes_train_one_cell_as_one_process_does(data: Path, tmp_path: Path) -> None:
    run = (
        f"{sys.executable} -m harness run --methods lora --tasks vqa --data-root {data} --epochs 1 --eps 1e-3 "
        "--accelerator cpu --results"
    )
    script = f"""
srun --nodes=2 --ntasks-per-node=1 {run} two --nodes 2 > two.txt 2>&1; echo "status $?"
{run} one --in-process > one.txt 2>&1
"""
    said = on_cluster(tmp_path, script)
    assert "status 0" in said, (tmp_path / "two.txt").read_text()
    two, one = Store(tmp_path / "two"), Store(tmp_path / "one")
    (record,), (alone,) = two.records(), one.records()
    assert record.training is not None
    assert (record.status, record.training.devices, record.cell.id) == ("finished", 2, alone.cell.id)
    tuned, expected = (load_file(store.folder(record.cell.id) / WEIGHTS) for store in (two, one))
    for name in expected:
        torch.testing.assert_close(tuned[name], expected[name], atol=1e-5, rtol=0)
    answers = [[each["answer"] for each in store.predictions(record.cell.id)] for store in (two, one)]
    assert answers[0] == answers[1]


@pytest.mark.timeout(300)
def test_a_refusal_of_slurm_is_one_line(data: Path, tmp_path: Path) -> None:
    script = f"{command(data, 'classifier')} --slurm-partition nowhere 2>&1; echo status $?"
    *_, line, status = on_cluster(tmp_path, script).splitlines()
    assert status == "status 2"
    assert line.startswith("harness: launcher: Slurm refuses the jobs: sbatch: error: ")
    assert "partition" in line
