"""Functions shared by tests of the embedded tasks' writers."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.backbones.vilt.loading import MINI_FOLDER
from tasks.base import Example


def digest(root: Path) -> str:
    """Digest of the names and bytes of all files below `root`."""
    hasher = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            hasher.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return hasher.hexdigest()


def unknown_words(texts: Iterable[str]) -> set[str]:
    """Words that are not whole in the embedded backbone's vocabulary."""
    known = set((MINI_FOLDER / "vocab.txt").read_text(encoding="utf-8").splitlines())
    words = {word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())}
    return words - known


def best_guess(examples: Sequence[Example], shown: Iterable[object]) -> float:
    """Accuracy in percent of the best possible guesser that sees only `shown` of each example."""
    labels: dict[object, Counter[int]] = defaultdict(Counter)
    for example, seen in zip(examples, shown, strict=True):
        labels[seen][example.target.index] += 1
    return 100 * sum(max(counts.values()) for counts in labels.values()) / len(examples)
