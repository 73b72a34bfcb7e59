"""Sample predictions of a cell, right and wrong, with their images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup

from harness.digests import digest_json
from harness.errors import UserError
from harness.folders import cache_folder
from harness.options import format_value
from harness.records.record import Record
from harness.registry import build_task
from harness.report.html.pictures import Picture, Pictures
from harness.report.html.templating import fill
from harness.specs import Spec
from tasks.base import Example

EACH = 4
"""Number of right and of wrong predictions to show."""


@dataclass(frozen=True)
class Examples:
    """A task's test examples by id; if empty, `missing` says why."""

    by_id: Mapping[str, Example]
    missing: str = ""


def load_examples(record: Record, data_root: Path | None) -> Examples:
    """Examples of the reported split, from the data that the cell was run on.

    The embedded benchmark is generated if it does not exist yet. Other data are read from `data_root`.
    """
    mini = record.data.benchmark == "mini"
    if not mini and data_root is None:
        return Examples({}, f"give the folder of {record.data.benchmark} with --data-root")
    options = {
        key: format_value(value)
        for key, value in record.cell.task.options.items()
        if value is not None and value not in ([], ())
    }
    try:
        task = build_task(Spec(record.cell.task.name, options))
        root = task.embedded_data(cache_folder()) if mini or data_root is None else data_root
        data = task.load(root)
    except UserError as error:
        return Examples({}, f"the data cannot be read: {error}")
    if record.data.digest is not None and digest_json(data.provenance) != record.data.digest:
        return Examples({}, "the data have changed since the cell was run")
    return Examples({example.id: example for example in data.splits[record.reported_split]})


def choose(predictions: Iterable[Mapping[str, Any]], each: int = EACH) -> list[Mapping[str, Any]]:
    """Up to `each` right and `each` wrong predictions (score at most 0.5), in the order of their ids' hashes.

    The order is the same for all cells, so cells of one task show the same examples where their answers agree.
    """
    ordered = sorted(predictions, key=lambda p: hashlib.sha256(str(p["id"]).encode()).hexdigest())
    known = [p for p in ordered if p.get("score") is not None]
    right = [p for p in known if p["score"] == 1][:each]
    return right + [p for p in known if p["score"] <= 0.5][:each]


@dataclass(frozen=True)
class _Card:
    """One prediction to show. images: file name and picture, None if the image cannot be read."""

    kind: Literal["right", "wrong", "partly"]
    verdict: str
    text: str
    said: Sequence[tuple[str, str]]
    truth: str
    images: Sequence[tuple[str, Picture | None]]


def render_samples(
    predictions: Iterable[Mapping[str, Any]], examples: Examples, pictures: Pictures
) -> Markup:
    """The chosen predictions as HTML."""
    cards = [_card(prediction, examples, pictures) for prediction in choose(predictions)]
    return fill("samples.html.j2", cards=cards, missing=examples.missing)


def _card(prediction: Mapping[str, Any], examples: Examples, pictures: Pictures) -> _Card:
    score = float(prediction["score"])
    kind: Literal["right", "wrong", "partly"] = "right" if score == 1 else "wrong" if score == 0 else "partly"
    mark = {"right": "✓ right", "wrong": "✗ wrong", "partly": f"◐ scores {score:.2f}"}[kind]
    example = examples.by_id.get(str(prediction["id"]))
    text = prediction.get("question") or prediction.get("text") or (example.text if example else "")
    images = [(path.name, pictures.get(path)) for path in (example.images if example else ())]
    return _Card(kind, mark, str(text), _said(prediction), _truth(prediction, example), images)


def _said(prediction: Mapping[str, Any]) -> list[tuple[str, str]]:
    for key in ("answer", "prediction"):
        if key in prediction:
            return [("said", str(prediction[key]))]
    ranks = (("image_rank", "its image ranked"), ("text_rank", "its caption ranked"))
    return [(name, str(prediction[key])) for key, name in ranks if key in prediction]


def _truth(prediction: Mapping[str, Any], example: Example | None) -> str:
    if prediction.get("label") is not None:
        return str(prediction["label"])
    answers = getattr(example.target, "answers", None) if example is not None else None
    if not answers:
        return ""
    counts = Counter(str(answer[-1] if isinstance(answer, tuple) else answer) for answer in answers)
    return ", ".join(f"{answer} ({count})" for answer, count in counts.most_common(3))
