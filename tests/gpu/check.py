"""Checks on one CUDA device: `python -m tests.gpu.check [--only SECTION,…] [--report FILE]`.

Latencies of deployed models, their share of the rate of matrix products, and the rates of training and loading are
printed, not judged. Then come checks: kernels, every method on the embedded backbones in float32 and bf16, a killed
run, agreement with the CPU. Every line is printed as soon as it is known. Nothing is downloaded. Exit status 1 if a
check fails.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from harness.process import prepare_process
from tests.gpu import correctness, loading, speed
from tests.gpu.report import Report

SECTIONS: dict[str, Callable[[Report, Path], None]] = {
    "latency": lambda report, folder: speed.latency(report),
    "gemm": lambda report, folder: speed.gemm_share(report),
    "training": lambda report, folder: speed.training(report),
    "loader": loading.parts,
    "kernels": lambda report, folder: correctness.kernels(report),
    "methods": correctness.every_method,
    "kill": correctness.killed_run,
    "cpu": correctness.same_on_the_cpu,
}
"""In the order in which they run; `cpu` reads what `methods` has made."""


def main() -> None:
    """Run the chosen sections."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help=f"sections, separated by commas: {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--seconds", type=float, default=340, help="start no section later than this")
    parser.add_argument("--report", type=Path, help="file to append the lines to")
    arguments = parser.parse_args()
    chosen = list(SECTIONS) if arguments.only is None else arguments.only.split(",")
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here")
    prepare_process()
    report = Report(arguments.report, arguments.seconds)
    report.line(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    with tempfile.TemporaryDirectory() as scratch:
        for name in SECTIONS:
            if name not in chosen:
                continue
            if report.late:
                report.line(f"--- {name}: left out, no time")
                continue
            with report.section(name):
                SECTIONS[name](report, Path(scratch))
            torch.cuda.empty_cache()
    report.line(
        f"{len(report.failed)} checks failed" + (f": {', '.join(report.failed)}" if report.failed else "")
    )
    raise SystemExit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
