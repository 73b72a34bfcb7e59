"""Checks on one CUDA device, in about five minutes: `python tests/gpu/check.py [--report FILE]`.

Every method trains and predicts on both embedded backbones in float32 and bf16; a killed run resumes; a
model gives on the GPU what it gives on the CPU; then the rates of the training loop and of the loader at full size, and
latencies of the deployed models. Nothing is downloaded. Exit status 1 if a check fails; figures are
printed, not judged.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from harness.backbones.base import Backbone, BackboneOptions
from harness.config.sources import make_settings
from harness.experiment.progress import ProgressReporter
from harness.experiment.runner import run_cells
from harness.experiment.session import make_plan
from harness.measure.latency import LatencySample, measure_latency
from harness.process import Interrupts, prepare_process
from harness.records.store import WEIGHTS, Store
from harness.registry import build_method, build_task, resolve_backbone
from harness.specs import parse_spec
from harness.training.fabric import make_fabric
from harness.training.model import TaskModel
from harness.training.optim import build_optimizer, build_schedule
from methods.base import Method
from tasks.base import Batch, Example
from tasks.data.loader import Loader

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
    "skip[choice=greedy]",
    "lora+das[search_epochs=2]",
    "lora+tome",
    "lst",
)
SMALL_TASK = "vqa[limit_train=160,limit_val=48,limit_test=96]"
FULL_SIZE = (384, 576)
"""Height and width in pixels of the images that rates and latencies are stated for."""
TEXT_LENGTH = 40
ANSWERS = 3129


class Report:
    """Lines for the terminal and for a file, and whether a check has failed."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.failed: list[str] = []
        self.started = time.monotonic()

    def line(self, text: str) -> None:
        """Print one line, with the seconds since the start."""
        stamped = f"{time.monotonic() - self.started:6.1f} s  {text}"
        print(stamped, flush=True)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(stamped + "\n")

    def check(self, name: str, passed: bool, text: str = "") -> None:
        """Print whether a check has passed; remember a failure."""
        self.line(f"{'ok' if passed else 'FAILED':7s}{name}{': ' if text else ''}{text}")
        if not passed:
            self.failed.append(name)

    @contextmanager
    def section(self, title: str) -> Iterator[None]:
        """A part of the checks. An exception fails the section, and the next one runs."""
        self.line(f"--- {title}")
        try:
            yield
        except Exception as error:
            self.check(title, False, f"{type(error).__name__}: {error}")


def every_method(report: Report, folder: Path) -> None:
    """Run each method on each embedded backbone in each precision. Each must finish with finite figures."""
    for backbone in ("vilt-mini", "meter-mini"):
        for precision in ("32-true", "bf16-mixed"):
            started = time.monotonic()
            plan = make_plan(
                make_settings(
                    methods=list(METHODS),
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


def full_size(name: str = "vilt") -> Backbone:
    """A backbone at full size with random weights, on the CPU."""
    options = BackboneOptions(weights="random", image_size=FULL_SIZE[0], text_length=TEXT_LENGTH)
    return resolve_backbone(name)(options)


def adapted(spec: str, backbone: Backbone) -> tuple[Method, Backbone, nn.Module]:
    """A backbone adapted by a method, and VQA's head."""
    generator = torch.Generator().manual_seed(0)
    method = build_method(parse_spec(spec))
    method.adapt(backbone, generator)
    backbone.pooled_token_only = method.per_token
    task = build_task(parse_spec("vqa"))
    task.without_data()
    head = task.build_head(backbone, generator)
    for parameter in [*backbone.common_parameters(), *head.parameters()]:
        parameter.requires_grad_(True)
    return method, backbone, head


def loop_rate(report: Report, batch_size: int = 64, seconds: float = 6.0) -> None:
    """Training examples per second of LoRA on full-size ViLT, bf16, on a batch that stays on the GPU."""
    _, backbone, head = adapted("lora", full_size())
    task = build_task(parse_spec("vqa"))
    task.without_data()
    settings = make_settings(methods="lora", tasks="vqa", precision="bf16-mixed", accelerator="cuda")
    fabric = make_fabric(settings)
    model = TaskModel(task, backbone, head)
    training = settings.training.resolved(1, batch_size, 1e-3)
    optimizer = build_optimizer(model, training, 1e-3, 1e-3)
    schedule = build_schedule(optimizer, 10_000, 0.1)
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    wrapped.train()
    inputs = backbone.example_inputs(batch_size, 20, FULL_SIZE, torch.Generator().manual_seed(0)).to(
        fabric.device
    )
    targets = torch.rand(batch_size, ANSWERS, device=fabric.device)
    batch = Batch((inputs,), targets, tuple(map(str, range(batch_size))))

    def step() -> None:
        fabric.backward(task.loss(wrapped(batch), targets))
        wrapped_optimizer.step()
        wrapped_optimizer.zero_grad(set_to_none=True)
        schedule.step()

    rate = batch_size / seconds_of(step, seconds)
    memory = torch.cuda.max_memory_allocated() / 2**30
    report.line(
        f"LoRA on full-size ViLT, bf16, batch {batch_size}, resident batch: {rate:.0f} examples/s, {memory:.1f} GiB"
    )


def seconds_of(step: Callable[[], object], seconds: float) -> float:
    """Median time of a call, over at least `seconds` and 5 calls after 3 warm-up calls."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    taken: list[float] = []
    while len(taken) < 5 or sum(taken) < seconds:
        started = time.perf_counter()
        step()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def loader_rate(report: Report, folder: Path, images: int = 512) -> None:
    """Examples per second of the loader alone, 640×480 JPEGs: in the first epoch, and with images already decoded."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    examples = []
    for index in range(images):
        coarse = generator.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        path = folder / f"{index}.jpg"
        Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
        examples.append(Example(str(index), "a question of some words", (path,), None, str(index)))
    backbone = full_size()
    backbone.processor.tokenize = lambda texts: [[101, *range(1000, 1008), 102] for _ in texts]  # type: ignore[method-assign]

    class NoTargets:
        """A task, as far as the loader needs one."""

        def collate_targets(self, examples: object) -> Tensor | None:
            return None

    loader = Loader(examples, NoTargets(), backbone.processor, 64, shuffle=True)  # type: ignore[arg-type]
    for what in ("decoding", "decoded"):
        started = time.perf_counter()
        for batch in loader:
            batch.to(torch.device("cuda"))
        torch.cuda.synchronize()
        rate = images / (time.perf_counter() - started)
        report.line(
            f"loader, 640×480 JPEGs, {what}, to the GPU: {rate:.0f} examples/s on {os.cpu_count()} cores"
        )


def graphed(run: Callable[[], object]) -> Callable[[], object]:
    """The same call as a replayed CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def latencies(report: Report, name: str, specs: dict[str, str]) -> None:
    """Deployed models with bf16 weights, eager and as a CUDA graph, interleaved; each against the first."""
    device = torch.device("cuda")
    models: dict[str, nn.Module] = {}
    for label, spec in specs.items():
        method, backbone, head = adapted(spec, full_size(name))
        method.finalize(backbone)
        task = build_task(parse_spec("vqa"))
        models[label] = (
            TaskModel(task, backbone, head).requires_grad_(False).eval().to(device, torch.bfloat16)
        )
    size = FULL_SIZE if name == "vilt" else (FULL_SIZE[0], FULL_SIZE[0])
    for batch_size in (1, 16, 64):
        inputs = next(iter(models.values())).backbone.example_inputs(  # type: ignore[union-attr,operator]
            batch_size, TEXT_LENGTH, size, torch.Generator().manual_seed(0)
        )
        inputs = inputs.to(device)
        object.__setattr__(inputs, "pixels", inputs.pixels.to(torch.bfloat16))
        batch = Batch((inputs,), None, tuple(map(str, range(batch_size))))

        eager = {label: forward_of(model, batch) for label, model in models.items()}
        for how, runs in (("eager", eager), ("graph", {label: graphed(run) for label, run in eager.items()})):
            samples = measure_latency(runs, device, min_iterations=30, min_seconds=0.4)
            report.line(f"{name}, bf16 weights, batch {batch_size}, {how}: {describe(samples)}")


def forward_of(model: nn.Module, batch: Batch) -> Callable[[], object]:
    """One forward pass without gradient, ready to be called."""

    def run() -> object:
        with torch.inference_mode():
            return model(batch)

    return run


def describe(samples: dict[str, LatencySample]) -> str:
    """Medians in ms, each with its ratio to the first."""
    base = next(iter(samples.values())).p50
    return ", ".join(f"{label} {one.p50:.3f} ms ({one.p50 / base:.3f})" for label, one in samples.items())


def main() -> None:
    """Run all checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, help="file to append the lines to")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here")
    prepare_process()
    report = Report(arguments.report)
    report.line(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with report.section("every method, both backbones, float32 and bf16"):
            every_method(report, folder)
        with report.section("a killed run"):
            killed_run(report, folder)
        with report.section("CPU and GPU"):
            same_on_the_cpu(report, folder)
        with report.section("training loop"):
            loop_rate(report)
        with report.section("loader"):
            loader_rate(report, folder / "images")
        das4 = {
            "untouched": "classifier",
            "parallel": "parallel",
            "das 2": "das[blocks=2+7]",
            "das 4": "das[blocks=2+5+7+9]",
        }
        with report.section("latency of full-size ViLT"):
            latencies(report, "vilt", das4)
        with report.section("latency of full-size METER"):
            latencies(
                report,
                "meter",
                {"untouched": "classifier", "das 2 + 2": "das[blocks=text.1+text.3+image.1+image.3]"},
            )
    report.line(
        f"{len(report.failed)} checks failed" + (f": {', '.join(report.failed)}" if report.failed else "")
    )
    raise SystemExit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
