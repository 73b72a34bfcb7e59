"""Where the time of a training step goes: decode, collate, copy, step; and what the main thread spends on data.

    pytest -o addopts= tests/benchmarks/test_loading_speed.py -s

Photographs of 640×480 pixels (JPEG), which ViLT reads at 384×512. Times of parts are of one thread, per example, in CPU
time, so that other load on the machine does not count. On a CUDA device the rates of the loop follow: LoRA on full-size
ViLT in bf16, on a batch that stays on the GPU, with images in memory, and with images in the image folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
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

BATCH = 64
WORDS = 12
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


@pytest.fixture(scope="module")
def backbone() -> Any:
    found: Any = resolve_backbone("vilt")(BackboneOptions(weights="random", image_size=384, text_length=40))
    found.processor.tokenize = lambda texts: [[101, *range(1000, 1000 + WORDS), 102] for _ in texts]
    found.processor.describe = lambda: {"image_size": 384}
    return found


@pytest.fixture(scope="module")
def task() -> Any:
    made = build_task(parse_spec("vqa"))
    made.without_data()
    return made


def per_example(what: Callable[[], object], examples: int, rounds: int = 5) -> float:
    """Median CPU time of this thread in ms per example, after one round of warm-up."""
    taken = []
    for _ in range(rounds + 1):
        started = time.thread_time()
        what()
        taken.append(1000 * (time.thread_time() - started) / examples)
    return float(np.median(taken[1:]))


def show(capsys: pytest.CaptureFixture[str], name: str, text: str) -> None:
    with capsys.disabled():
        print(f"\n{name:34} {text}", end="", flush=True)


def test_parts(backbone: Any, task: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = photographs(tmp_path, BATCH)
    processor = backbone.processor
    paths = [str(example.images[0]) for example in examples]
    images: list[Tensor] = [decode(path, processor) for path in paths]  # type: ignore[misc]
    folder = ImageFolder(tmp_path / "images", processor)
    for index, image in enumerate(images):
        folder.put(f"{index:064x}", image)
    tokens = processor.tokenize(paths)

    def collate() -> None:
        pad_images(images)
        pad_text(tokens, 0)
        task.collate_targets(examples)

    pixels, _ = pad_images(images)
    show(
        capsys,
        "decode and resize",
        f"{per_example(lambda: [decode(p, processor) for p in paths], BATCH):.3f} ms",
    )
    kept = per_example(lambda: [folder.get(f"{index:064x}") for index in range(BATCH)], BATCH)
    show(capsys, "read from the image folder", f"{kept:.3f} ms")
    show(capsys, "collate", f"{per_example(collate, BATCH):.3f} ms")
    show(
        capsys,
        "normalise on the CPU",
        f"{per_example(lambda: normalize(pixels, None, processor), BATCH):.3f} ms",
    )
    if CUDA:
        pinned = pixels.pin_memory()

        def copy() -> None:
            normalize(pinned.to("cuda", non_blocking=True), None, processor)
            torch.cuda.synchronize()

        for _ in range(3):
            copy()
        started = time.perf_counter()
        for _ in range(20):
            copy()
        show(
            capsys,
            "copy and normalise on the GPU",
            f"{1000 * (time.perf_counter() - started) / 20 / BATCH:.4f} ms",
        )


@pytest.mark.parametrize("where", ["memory", "image folder"])
def test_main_thread(
    where: str, backbone: Any, task: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is left to the thread that trains: taking batches, and on CUDA normalising them."""
    examples = photographs(tmp_path, 4 * BATCH)
    folder = tmp_path / "images" if where == "image folder" else None
    loader = Loader(
        examples,
        task,
        backbone.processor,
        BATCH,
        shuffle=True,
        cache=ImageCache(backbone.processor, folder=folder),
    )
    loader.device = torch.device("cuda" if CUDA else "cpu")

    def epoch() -> None:
        for batch in loader:
            assert batch.inputs[0].pixels.shape[2:] == (384, 512)

    show(capsys, f"main thread, images in {where}", f"{per_example(epoch, 4 * BATCH):.4f} ms")


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.timeout(600)
def test_loop(backbone: Any, task: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Examples per second of LoRA in bf16: resident batch, loop on images in memory and in the folder, first epochs."""
    examples = photographs(tmp_path, 2048)
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

    def rate(batches: Any) -> float:
        started = time.perf_counter()
        train_epoch(fabric, state, task, batches)
        state.next_epoch()
        return len(batches.examples) / (time.perf_counter() - started)

    def made(folder: Path | None) -> Loader:
        cache = ImageCache(backbone.processor, folder=folder)
        return Loader(examples, task, backbone.processor, BATCH, shuffle=True, cache=cache)

    in_memory, filled = made(None), made(tmp_path / "images")
    resident = Resident(made(None))
    rate(resident)
    show(capsys, "first epoch, threads decode", f"{rate(in_memory):.0f} examples/s on {usable_cores()} cores")
    show(capsys, "first epoch, filling the folder", f"{rate(filled):.0f} examples/s")
    for workers in (0, usable_cores()):
        decoding = Loader(
            examples,
            task,
            backbone.processor,
            BATCH,
            shuffle=True,
            workers=workers,
            cache=ImageCache(backbone.processor, budget_mib=0),
        )
        rate(decoding)
        show(capsys, f"nothing kept, {workers or 'no'} processes", f"{rate(decoding):.0f} examples/s")
    reopened = made(tmp_path / "images")
    show(capsys, "first epoch on a filled folder", f"{rate(reopened):.0f} examples/s")
    contestants = {
        "resident batches": resident,
        "images in memory": in_memory,
        "images in the folder": filled,
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(4):
        for name, batches in contestants.items():
            rates[name].append(rate(batches))
    base = np.median(rates["resident batches"])
    for name, found in rates.items():
        show(
            capsys,
            name,
            f"{np.median(found):.0f} examples/s, {np.median(found) / base:.3f} of resident batches",
        )
    show(capsys, torch.cuda.get_device_name(), f"{os.cpu_count()} cores")
