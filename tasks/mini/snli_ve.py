"""Write hypotheses about drawn pictures in the official file formats of SNLI-VE.

Pictures come in sets of three. Every hypothesis of a set is used with all three: one picture entails it, one
contradicts it, and one leaves it open (see `tasks.mini.hypotheses`). Every picture has the three labels equally
often. Accuracies on these files are accuracies on `mini`, never on SNLI-VE.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.mini.balance import Pattern, choose_balanced
from tasks.mini.captions import caption
from tasks.mini.folder import Generation, check_sizes, write_json_lines
from tasks.mini.hypotheses import LABELS, Hypothesis, sample_hypothesis
from tasks.mini.render import TEXTURED, render
from tasks.mini.scenes import Things, new_scene, sample_theme
from tasks.mini.world import Scene

VERSION = 1
"""Increase with every change that alters a file."""

PICTURES = len(LABELS)
"""Pictures in a set, and so examples per hypothesis."""

_THEME = 4, 4  # colours and shapes of a set
_CANDIDATES = 300  # hypotheses drawn for a set


@dataclass(frozen=True)
class Sizes:
    """Number of sets in each split, and of hypotheses per set (a multiple of 3)."""

    train_sets: int = 400
    dev_sets: int = 60
    test_sets: int = 160
    hypotheses: int = 3

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.hypotheses % len(LABELS):
            raise ValueError(f"hypotheses must be a multiple of {len(LABELS)}, got {self.hypotheses}")

    def splits(self) -> dict[str, int]:
        """Official split name to number of sets."""
        return {"train": self.train_sets, "dev": self.dev_sets, "test": self.test_sets}


def ensure_snli_ve(cache_root: Path, seed: int = 0, sizes: Sizes = Sizes()) -> Path:
    """The folder with the benchmark's files, generated under `cache_root` if it does not exist yet."""
    return _GENERATION.ensure(cache_root, seed, sizes)


def _write(root: Path, seed: int, sizes: Sizes) -> None:
    (root / "flickr30k_images").mkdir()
    taken: set[Things] = set()
    for index, (split, sets) in enumerate(sizes.splits().items()):
        rng = np.random.default_rng([seed, index])
        lines: list[dict[str, Any]] = []
        for _ in range(sets):
            lines += _write_set(root, sizes.hypotheses, taken, rng)
        write_json_lines(root / f"snli_ve_{split}.jsonl", lines)


_GENERATION: Generation[Sizes] = Generation("snli_ve", VERSION, _write)


def _write_set(
    root: Path, hypotheses: int, taken: set[Things], rng: np.random.Generator
) -> list[dict[str, Any]]:
    first = len(taken) + 1
    scenes, chosen = sample_set(hypotheses, taken, rng)
    premises = {}
    for image, scene in enumerate(scenes, start=first):
        picture = Image.fromarray(render(scene, TEXTURED, rng))
        picture.save(root / "flickr30k_images" / f"{image}.jpg", quality=95, subsampling=0)
        premises[image] = caption(scene, rng)
    lines = []
    for number, (hypothesis, pattern) in enumerate(chosen):
        text = hypothesis.text(rng)
        for (image, premise), label in zip(premises.items(), pattern, strict=True):
            lines.append(
                {
                    "Flickr30K_ID": str(image),
                    "annotator_labels": [LABELS[label]],
                    "captionID": f"{image}.jpg#0",
                    "gold_label": LABELS[label],
                    "pairID": f"{image}.jpg#0r{number}{LABELS[label][0]}",
                    "sentence1": premise,
                    "sentence2": text,
                }
            )
    return lines


def sample_set(
    hypotheses: int, taken: set[Things], rng: np.random.Generator
) -> tuple[list[Scene], list[tuple[Hypothesis, Pattern]]]:
    """New scenes, and hypotheses with their label (an index of `LABELS`) for each scene. Adds the scenes to `taken`."""
    while True:
        theme = sample_theme(*_THEME, rng)
        seen = set(taken)
        scenes: list[Scene] = []
        for _ in range(PICTURES):
            scenes.append(new_scene("snli_ve", theme, seen, rng))
            seen.add(frozenset(scenes[-1].things))
        candidates: list[tuple[Hypothesis, Pattern]] = []
        for _ in range(_CANDIDATES):
            hypothesis = sample_hypothesis(theme, rng)
            labels: list[int] = []
            for scene in scenes:
                label = hypothesis.label(scene)
                if label is None or label in labels:
                    break
                labels.append(label)
            else:
                candidates.append((hypothesis, tuple(labels)))
        chosen = choose_balanced(candidates, len(LABELS), hypotheses // len(LABELS), rng)
        if chosen is not None:
            taken |= seen
            return scenes, chosen
