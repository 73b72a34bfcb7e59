"""Methods, kernels and resuming give on a GPU what they give on the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from harness.backbones.kernels import only_operators
from harness.config.sources import make_settings
from harness.experiment.progress import ProgressReporter
from harness.experiment.runner import run_cells
from harness.experiment.session import make_plan
from harness.process import Interrupts
from harness.records.store import WEIGHTS, Store
from tasks.base import Batch
from tests.gpu.models import batch_of, deployed, forward_of
from tests.gpu.report import Report
from tests.gpu.speed import METER, VILT

ROOT = Path(__file__).resolve().parents[2]
METHODS = (
    "full",
    "classifier",
    "bitfit",
    "lora",
    "adapter",
    "parallel",
    "shallow_prompt",
    "deep_prompt",
    "das",
    "skip",
    "skip[choice=influence]",
    "skip[choice=alignment]",
    "skip[choice=greedy]",
    "eas[search_epochs=2]",
    "lora+das[search_epochs=2]",
    "lora+tome",
    "pumer",
    "lst",
    "roe",
    "vp",
    "tvp",
    "lora+roe[tune=full]",
    "seq_bn",
    "peft:dora",
)
"""Every method; of those that libraries offer one each."""
METHODS_OF_DECODERS = (
    "full",
    "lora",
    "adapter",
    "das[search_epochs=2]",
    "eas[search_epochs=2]",
    "roe",
    "tvp",
    "peft:dora",
)
"""Methods on a backbone that writes its answers."""
SMALL_TASK = "vqa[limit_train=160,limit_val=48,limit_test=96]"


def kernels(report: Report) -> None:
    """Deployed full-size models give with the kernels what they give with torch's operators alone."""
    for name, specs in (("vilt", VILT), ("meter", METER)):
        for label, spec in specs.items():
            for dtype, allowed in ((torch.float32, 1e-4), (torch.bfloat16, 0.03)):
                model = deployed(name, spec, dtype)
                for part in model.backbone.blocks.parameters():  # else fresh adapters add nothing
                    torch.nn.init.normal_(part, std=0.03 if part.dim() > 1 else 0.1)
                run = forward_of(model, batch_of(name, model.backbone, 3, dtype, 20))
                fused = run()
                with only_operators():
                    plain = run()
                difference = float((fused - plain).float().norm() / plain.float().norm())
                report.check(f"kernels: {label}, {name}, {dtype}", difference < allowed, f"{difference:.1e}")


def every_method(report: Report, folder: Path) -> None:
    """Run each method on each embedded backbone in each precision. Each must finish with finite figures."""
    for backbone, methods in (
        ("vilt-mini", METHODS),
        ("meter-mini", METHODS),
        ("llava-mini", METHODS_OF_DECODERS),
    ):
        for precision in ("32-true", "bf16-mixed"):
            started = time.monotonic()
            plan = make_plan(
                make_settings(
                    methods=list(methods),
                    tasks=[SMALL_TASK],
                    backbone=backbone,
                    epochs=1,
                    precision=precision,
                    accelerator="cuda",
                    in_process=True,
                    results=folder / f"{backbone}-{precision}",
                )
            )
            with ProgressReporter(Console(quiet=True), plan.cells, Interrupts(), stages=False) as reporter:
                records = run_cells(plan.cells, plan.store, reporter)
            seconds = time.monotonic() - started
            for record in records:
                name = f"{record.cell.method.label}, {backbone}, {precision}"
                text = record.error or f"accuracy {record.primary:.1f} on {record.environment.device}"
                report.check(name, record.status == "finished" and record.environment.device == "cuda", text)
            report.line(f"{len(records)} cells in {seconds:.1f} s")


def killed_run(report: Report, folder: Path) -> None:
    """A run that is killed during training and resumed has the figures of an uninterrupted run."""
    whole, killed = folder / "whole", folder / "killed"
    command = [
        *(
            sys.executable,
            "-m",
            "harness",
            "run",
            "--methods",
            "lora",
            "--tasks",
            SMALL_TASK,
            "--epochs",
            "6",
        ),
        *("--accelerator", "cuda", "--in-process", "--results"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    subprocess.run([*command, str(whole)], check=True, **quiet)  # type: ignore[call-overload]
    process = subprocess.Popen([*command, str(killed)], **quiet)  # type: ignore[call-overload]
    deadline = time.monotonic() + 60
    while process.poll() is None and not list(killed.glob("cells/*/checkpoint/state.pt")):
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    interrupted = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    report.check("killed during training", interrupted)
    subprocess.run([*command, str(killed)], check=True, **quiet)  # type: ignore[call-overload]
    (one,), (other,) = Store(whole).records(), Store(killed).records()
    report.check("the resumed run finished", other.status == "finished")
    first, second = (list(Store(place).predictions(one.cell.id)) for place in (whole, killed))
    same = sum(a == b for a, b in zip(first, second, strict=True))
    report.line(f"identical predictions after the kill: {same} of {len(first)}")


def same_on_the_cpu(report: Report, folder: Path) -> None:
    """The deployed models of the float32 runs have equal outputs on GPU and CPU."""
    from safetensors.torch import load_file

    from harness.experiment.build import deployed_model
    from harness.experiment.reload import cell_of

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    for backbone in ("vilt-mini", "meter-mini"):
        store = Store(folder / f"{backbone}-32-true")
        for record in store.records():
            cell = cell_of(record, None, None, None)
            decision = None if record.search is None else record.search.decision
            tuned = load_file(store.folder(record.cell.id) / WEIGHTS)
            model = deployed_model(cell, tuned, decision)
            inputs = cell.testbed.backbone.example_inputs(16, 12, (64, 64), torch.Generator().manual_seed(0))
            batch = Batch((inputs,), None, tuple(map(str, range(16))))
            with torch.inference_mode():
                on_cpu = model.cpu()(batch)
                on_gpu = model.cuda()(batch.to(torch.device("cuda"))).cpu()
            difference = float((on_cpu - on_gpu).abs().max())
            scale = float(on_cpu.abs().max())
            report.check(
                f"CPU and GPU agree: {record.cell.method.label}, {backbone}",
                difference < 1e-3 * max(1.0, scale),
                f"largest difference of a logit {difference:.1e} of {scale:.1f}",
            )
