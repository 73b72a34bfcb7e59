"""Where the time of a training step goes: decode, collate, copy, step; and what the main thread spends on data.

    pytest -o addopts= tests/benchmarks/test_loading_speed.py

Photographs of 640×480 pixels (JPEG), which ViLT reads at 384×512. Times are per example. Those of the parts are of one
thread, in CPU time, so that other load on the machine does not count. On a CUDA device the loop follows: LoRA on
full-size ViLT in bf16, on batches that stay on the GPU, with images in memory, and with images in the image folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from harness.backbones.base import BackboneOptions
from harness.config.sources import make_settings
from harness.registry import build_method, build_task, resolve_backbone
from harness.specs import parse_spec
from harness.training.fabric import make_fabric
from harness.training.loop import State, train_epoch
from harness.training.model import TaskModel
from harness.training.optim import build_optimizer, build_schedule
from tasks.base import Example
from tasks.data.batches import normalize, pad_images, pad_text
from tasks.data.decoding import usable_cores
from tasks.data.image_cache import ImageCache
from tasks.data.image_folder import ImageFolder
from tasks.data.images import decode
from tasks.data.loader import Loader
from tasks.vqa.task import VQATarget
from tests.benchmarks.groups import Group, Measured, in_groups

BATCH = 64
WORDS = 12
DECODE, RESIDENT = "decode and resize", "resident batches"
CUDA = torch.cuda.is_available()


def photographs(folder: Path, number: int) -> list[Example]:
    rng = np.random.default_rng(0)
    examples = []
    for index in range(number):
        coarse = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        path = folder / f"{index}.jpg"
        Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
        target = VQATarget({index % 3000: 1.0, (index + 7) % 3000: 0.3}, (), "other")
        examples.append(Example(str(index), "words", (path,), target, str(index)))
    return examples


def make_backbone() -> Any:
    found: Any = resolve_backbone("vilt")(BackboneOptions(weights="random", image_size=384, text_length=40))
    found.processor.tokenize = lambda texts: [[101, *range(1000, 1000 + WORDS), 102] for _ in texts]
    found.processor.describe = lambda: {"image_size": 384}
    return found


def make_task() -> Any:
    made = build_task(parse_spec("vqa"))
    made.without_data()
    return made


def per_example(what: Callable[[], object], examples: int, rounds: int = 5) -> list[float]:
    """CPU seconds of this thread per example in each round, after one round of warm-up."""
    taken = []
    for _ in range(rounds + 1):
        started = time.thread_time()
        what()
        taken.append((time.thread_time() - started) / examples)
    return taken[1:]


def measure_parts() -> Measured:
    with TemporaryDirectory() as folder:
        return _measure_parts(Path(folder))


def _measure_parts(place: Path) -> Measured:
    backbone, task = make_backbone(), make_task()
    examples = photographs(place, 4 * BATCH)
    some, processor = examples[:BATCH], backbone.processor
    paths = [str(example.images[0]) for example in some]
    images: list[Tensor] = [decode(path, processor) for path in paths]  # type: ignore[misc]
    folder = ImageFolder(place / "images", processor)
    for index, image in enumerate(images):
        folder.put(f"{index:064x}", image)
    tokens = processor.tokenize(paths)
    pixels, _ = pad_images(images)

    def collate() -> None:
        pad_images(images)
        pad_text(tokens, 0)
        task.collate_targets(some)

    def epoch(kept_in: Path | None) -> Callable[[], None]:
        """What is left to the thread that trains: taking batches, and on CUDA normalising them."""
        cache = ImageCache(processor, folder=kept_in)
        loader = Loader(examples, task, processor, BATCH, shuffle=True, cache=cache)
        loader.device = torch.device("cuda" if CUDA else "cpu")

        def run() -> None:
            for batch in loader:
                assert batch.inputs[0].pixels.shape[2:] == (384, 512)

        return run

    found = {
        DECODE: per_example(lambda: [decode(path, processor) for path in paths], BATCH),
        "read from the image folder": per_example(
            lambda: [folder.get(f"{index:064x}") for index in range(BATCH)], BATCH
        ),
        "collate": per_example(collate, BATCH),
        "normalise on the CPU": per_example(lambda: normalize(pixels, None, processor), BATCH),
        "main thread, images in memory": per_example(epoch(None), len(examples)),
        "main thread, images in the folder": per_example(epoch(place / "kept"), len(examples)),
    }
    return {name: (seconds, {}) for name, seconds in found.items()}


PARTS = (
    DECODE,
    "read from the image folder",
    "collate",
    "normalise on the CPU",
    "main thread, images in memory",
    "main thread, images in the folder",
)


@in_groups([Group("loading, 384x512", PARTS, DECODE, measure_parts, quick=True)])
def test_parts(group: Group, contestant: str, benchmark: Any) -> None:
    group.hand_over(contestant, benchmark)


def measure_loop() -> Measured:
    with TemporaryDirectory() as folder:
        return _measure_loop(Path(folder))


def _measure_loop(place: Path) -> Measured:
    backbone, task = make_backbone(), make_task()
    examples = photographs(place, 2048)
    settings = make_settings(methods="lora", tasks="vqa", precision="bf16-mixed", accelerator="cuda")
    fabric = make_fabric(settings)
    generator = torch.Generator().manual_seed(0)
    method = build_method(parse_spec("lora"))
    method.adapt(backbone, generator)
    backbone.pooled_token_only = method.per_token
    head = task.build_head(backbone, generator)
    for parameter in [*backbone.common_parameters(), *head.parameters()]:
        parameter.requires_grad_(True)
    model = TaskModel(task, backbone, head)
    optimizer = build_optimizer(model, settings.training.resolved(1, BATCH, 1e-3), 1e-3, 1e-3)
    schedule = build_schedule(optimizer, 100_000, 0.1)
    state = State(*fabric.setup(model, optimizer), schedule)

    class Resident:
        """The batches of a loader, made before and kept on the GPU."""

        wait_seconds = 0.0

        def __init__(self, loader: Loader) -> None:
            self.examples = loader.examples
            loader.device = fabric.device
            self.batches = list(loader)

        def set_epoch(self, epoch: int, start: int = 0) -> None:
            pass

        def __len__(self) -> int:
            return len(self.batches)

        def __iter__(self) -> Any:
            return iter(self.batches)

    def seconds(batches: Any) -> float:
        started = time.perf_counter()
        train_epoch(fabric, state, task, batches)
        state.next_epoch()
        return (time.perf_counter() - started) / len(batches.examples)

    def made(folder: Path | None, **options: Any) -> Loader:
        cache = ImageCache(backbone.processor, folder=folder, **options)
        return Loader(examples, task, backbone.processor, BATCH, shuffle=True, cache=cache)

    def decoding(workers: int) -> Loader:
        cache = ImageCache(backbone.processor, budget_mib=0)
        return Loader(examples, task, backbone.processor, BATCH, shuffle=True, workers=workers, cache=cache)

    in_memory, filled = made(None), made(place / "images")
    resident = Resident(made(None))
    seconds(resident)
    first = {
        "first epoch, threads decode": [seconds(in_memory)],
        "first epoch, filling the folder": [seconds(filled)],
        "first epoch on a filled folder": [seconds(made(place / "images"))],
    }
    for name, workers in (
        ("nothing kept, no processes", 0),
        ("nothing kept, a process per core", usable_cores()),
    ):
        batches = decoding(workers)
        seconds(batches)
        first[name] = [seconds(batches)]
    pinned, _ = pad_images([torch.zeros(3, 384, 512, dtype=torch.uint8)] * BATCH)
    pinned = pinned.pin_memory()

    def copied() -> float:
        started = time.perf_counter()
        normalize(pinned.to("cuda", non_blocking=True), None, backbone.processor)
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / BATCH

    first["copy and normalise on the GPU"] = [copied() for _ in range(20)][-4:]
    contestants = {RESIDENT: resident, "images in memory": in_memory, "images in the folder": filled}
    later: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(4):
        for name, batches in contestants.items():
            later[name].append(seconds(batches))
    bars = {"images in memory": 1 / 0.9, "images in the folder": 1 / 0.95}
    device = {"device": torch.cuda.get_device_name(), "cores": usable_cores()}
    # A single first epoch is compared with the last round on resident batches.
    return {name: (taken, {"bar": bars.get(name), **device}) for name, taken in (later | first).items()}


LOOP = (
    RESIDENT,
    "images in memory",
    "images in the folder",
    "first epoch, threads decode",
    "first epoch, filling the folder",
    "first epoch on a filled folder",
    "nothing kept, no processes",
    "nothing kept, a process per core",
    "copy and normalise on the GPU",
)


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@in_groups([Group("LoRA, ViLT-B/32, bf16, loop", LOOP, RESIDENT, measure_loop)])
def test_loop(group: Group, contestant: str, benchmark: Any) -> None:
    group.hand_over(contestant, benchmark)
