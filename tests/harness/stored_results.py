"""Results folders with predictions whose scores are chosen by the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from test_record import make_record

from harness.record import Record
from harness.store import Store

TWO_A_PICTURE = 2


def predictions_of(scores: Sequence[float], group_size: int = TWO_A_PICTURE) -> list[dict[str, Any]]:
    """VQA predictions with these scores, `group_size` questions a picture."""
    return [
        {
            "id": str(index),
            "group": str(index // group_size),
            "question": f"question {index}?",
            "answer": "yes" if score == 1 else "no",
            "answer_type": "yes/no" if index % 4 < 2 else "other",
            "score": score,
        }
        for index, score in enumerate(scores)
    ]


def record_of(method: str, seed: int, predictions: Sequence[Mapping[str, Any]], **changes: Any) -> Record:
    """A record whose accuracy is that of the predictions."""
    accuracy = 100 * sum(each["score"] for each in predictions) / len(predictions)
    changes.setdefault("metrics", {"val": {"accuracy": accuracy}, "test": {"accuracy": accuracy}})
    return make_record(method, seed, accuracy, **changes)


def store_scores(root: Path, scores: Mapping[tuple[str, int], Sequence[float]], **changes: Any) -> Store:
    """A results folder with a cell for each (method, seed)."""
    store = Store(root)
    for (method, seed), own in scores.items():
        predictions = predictions_of(own)
        record = record_of(method, seed, predictions, **changes)
        curve = [
            {"epoch": epoch, "train_loss": 3 / epoch, "val_accuracy": 40 + 5 * epoch + seed}
            for epoch in (1, 2, 3)
        ]
        store.commit(record, predictions=predictions, curve=curve, compress=True)
    return store
