"""Where the time of an example goes before it is trained on: decode, collate, copy; and the loader's rate."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.backbones.base import BackboneOptions
from harness.registry import resolve_backbone
from tasks.base import Example
from tasks.data.batches import normalize, pad_images, pad_text
from tasks.data.images import decode
from tasks.data.loader import Loader
from tests.gpu.models import CUDA, TEXT_LENGTH
from tests.gpu.report import Report

BATCH = 64


class NoTargets:
    """A task, as far as the loader needs one."""

    def collate_targets(self, examples: object) -> Tensor | None:
        """There are none."""
        return None


def parts(report: Report, folder: Path, images: int = 1024) -> None:
    """640×480 JPEGs as ViLT reads them: the parts of one batch apart, then whole epochs to the GPU."""
    photographs = folder / "photographs"
    photographs.mkdir()
    generator = np.random.default_rng(0)
    examples = []
    for index in range(images):
        coarse = generator.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        path = photographs / f"{index}.jpg"
        Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
        examples.append(Example(str(index), "a question of some words", (path,), None, str(index)))
    options = BackboneOptions(weights="random", image_size=384, text_length=TEXT_LENGTH)
    with torch.device("meta"):
        processor: Any = resolve_backbone("vilt")(options).processor
    processor.tokenize = lambda texts: [[101, *range(1000, 1008), 102] for _ in texts]
    paths = [str(example.images[0]) for example in examples[:BATCH]]
    decoded: list[Any] = [decode(path, processor) for path in paths]
    tokens = processor.tokenize(paths)
    pixels = pad_images(decoded)[0]
    pinned = pixels.pin_memory()

    def copy() -> None:
        normalize(pinned.to(CUDA, non_blocking=True), None, processor)
        torch.cuda.synchronize()

    for what, run in (
        ("decode and resize, one thread", lambda: [decode(path, processor) for path in paths]),
        ("collate", lambda: (pad_images(decoded), pad_text(tokens, 0))),
        ("copy and normalise", copy),
    ):
        report.line(f"loader, {what}: {1000 * _seconds_of(run) / BATCH:.4f} ms an example")
    loader = Loader(examples, NoTargets(), processor, BATCH, shuffle=True)  # type: ignore[arg-type]
    loader.device = CUDA
    for epoch, what in enumerate(("decoding", "decoded", "decoded again")):
        loader.set_epoch(epoch)
        started, waited = time.perf_counter(), loader.wait_seconds
        for _ in loader:
            pass
        torch.cuda.synchronize()
        rate = images / (time.perf_counter() - started)
        report.line(
            f"loader, {what}, to the GPU: {rate:.0f} examples/s on {os.cpu_count()} cores, "
            f"waited {loader.wait_seconds - waited:.2f} s"
        )


def _seconds_of(run: Callable[[], object], rounds: int = 5) -> float:
    run()
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))
