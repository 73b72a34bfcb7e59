"""Results folders with predictions whose scores are chosen by the test."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.records.record import Record
from harness.records.store import Store

TWO_A_PICTURE = 2


def as_json(
    method: str = "lora",
    seed: int = 0,
    accuracy: float = 60.0,
    updated: int = 12_000,
    macs: int = 70_000_000,
    p50: float = 12.0,
    **changes: Any,
) -> dict[str, Any]:
    """A complete record of a small cell as JSON; `a__b` in `changes` replaces a nested key."""
    tuned, added = (updated, 0) if method in ("full", "bitfit") else (0, updated)
    groups = {
        "backbone_frozen": 2_400_000 - tuned,
        "backbone_tuned": tuned,
        "common": 20_000,
        "head": 60_000,
        "method": added,
        "method_frozen": 0,
    }
    content: dict[str, Any] = {
        "schema_version": 2,
        "cell": {
            "id": f"{re.sub('[^A-Za-z0-9_-]', '-', method)}.{seed}.0a1b2c",
            "method": {"name": method.split("[")[0], "options": {}, "label": method},
            "task": {
                "name": "vqa",
                "title": "VQA2.0",
                "version": 1,
                "options": {"val_fraction": 0.1},
                "primary_metric": "accuracy",
                "higher_is_better": True,
            },
            "backbone": {"name": "vilt-mini", "digest": "ab" * 32, "config": {"image_size": 64}},
            "seed": seed,
        },
        "status": "finished",
        "protocol": {"epochs": 5, "batch_size": 64, "precision": "32-true", "head_rule": "mlp"},
        "data": {"benchmark": "mini", "digest": "d1", "details": {"train": 4000}},
        "metrics": {"val": {"accuracy": accuracy + 1}, "test": {"accuracy": accuracy, "yes/no": 70.5}},
        "majority_accuracy": 31.25,
        "parameters": {"groups": groups, "total": sum(groups.values()), "updated": updated},
        "compute": {
            "image_size": [64, 64],
            "text_length": 16,
            "macs": {"fusion": macs - 1000, "head": 1000},
            "macs_total": macs,
            "flops_total": 2 * macs,
            "convention": "matrix products",
        },
        "latency": [
            {
                "batch_size": 1,
                "image_size": [64, 64],
                "text_length": 16,
                "p50_ms": p50,
                "p90_ms": p50 + 1,
                "n": 3,
                "threads": 2,
                "device": "cpu",
                "samples_ms": [p50 - 1, p50, p50 + 1],
                "group": "g0",
            }
        ],
        "memory": {"peak_training_mib": 512.0, "how": "resident set"},
        "tuned_file_bytes": 2**18,
        "training": {
            "examples_per_second": 205.0,
            "seconds": 90.0,
            "epochs": 5,
            "best_epoch": 4,
            "steps": 300,
            "data_wait_fraction": 0.05,
            "learning_rate": 1e-3,
        },
        "environment": {
            "versions": {"python": "3.11.0", "peft": None},
            "hardware": {"cpu": "a CPU", "cores": 2, "gpus": []},
            "threads": 2,
            "command": "harness run",
            "platform": "Linux 6 x86_64",
        },
        "timestamps": {"started": "2025-01-01T10:00:00+00:00", "finished": "2025-01-01T11:00:00+00:00"},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        inner = content
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return content


def as_search(**changes: Any) -> dict[str, Any]:
    """The search of a record, which skips the second of three blocks."""
    return {
        "seconds": 9.0,
        "share": 0.4,
        "epochs": 3,
        "summary": "skipped joint.1",
        "warm_start": False,
        "figures": {"blocks skipped": '["joint.1"]'},
        "diagram": {"blocks": ["joint.0", "joint.1", "joint.2"], "skipped": ["joint.1"]},
        "decision": {"skipped": ["joint.1"]},
        **changes,
    }


def make_record(*positional: Any, **changes: Any) -> Record:
    return Record.model_validate(as_json(*positional, **changes))


def predictions_of(scores: Sequence[float], group_size: int = TWO_A_PICTURE) -> list[dict[str, Any]]:
    """VQA predictions with these scores, `group_size` questions per picture."""
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
