"""Every metric of every task, computed from its shares, equals the result of the task's score function."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.analysis import scores
from harness.analysis.scores import read_scores, shares_of
from harness.errors import UserError
from harness.records.record import Record
from harness.records.store import Store
from tasks.nlvr import scoring as nlvr_scoring
from tasks.nlvr2 import scoring as nlvr2_scoring
from tasks.retrieval import scoring as retrieval_scoring
from tasks.scorer import Scorer, Share
from tasks.snli_ve import scoring as snli_ve_scoring
from tasks.vqa import scoring as vqa_scoring
from tests.support.paths import ROOT
from tests.support.stored_results import make_record

RANDOM = np.random.default_rng(0)


def right(chance: float = 0.7) -> float:
    return float(RANDOM.random() < chance)


def vqa() -> list[dict[str, Any]]:
    kinds = ("yes/no", "number", "other")
    return [
        {"id": str(i), "group": str(i // 3), "answer_type": kinds[i % 3], "score": round(RANDOM.random(), 1)}
        for i in range(60)
    ]


def snli_ve() -> list[dict[str, Any]]:
    labels = ("contradiction", "entailment", "neutral")
    return [
        {
            "id": str(i),
            "group": str(i // 4),
            "label": labels[i % 3],
            "prediction": "neutral",
            "score": right(),
        }
        for i in range(60)
    ]


def nlvr2() -> list[dict[str, Any]]:
    subsets = (["balanced"], ["unbalanced"], [])
    return [
        {
            "id": f"test1-{s}-{pair}-{k}",
            "group": f"{s}-{pair}",
            "subsets": subsets[s % 3],
            "score": right(0.9),
        }
        for s in range(20)
        for pair in range(2)
        for k in range(2)
    ]


def nlvr() -> list[dict[str, Any]]:
    return [
        {"id": f"test-{s}-{pair}-{order}", "group": f"{s}-{pair}", "score": right(0.95)}
        for s in range(12)
        for pair in range(2)
        for order in range(6)
    ]


def retrieval() -> list[dict[str, Any]]:
    """Images with two to four captions; ranks from 1 to 12."""
    found: list[dict[str, Any]] = []
    for image in range(25):
        text_rank = int(RANDOM.integers(1, 12))
        for _ in range(2 + image % 3):
            ranks = {"image_rank": int(RANDOM.integers(1, 12)), "text_rank": text_rank}
            found.append({"id": str(len(found)), "group": str(image), "score": 0.0, **ranks})
    return found


TASKS: dict[str, tuple[Callable[[], list[dict[str, Any]]], Any, str]] = {
    "vqa": (vqa, vqa_scoring.score, "accuracy"),
    "snli_ve": (snli_ve, snli_ve_scoring.score, "accuracy"),
    "nlvr2": (nlvr2, nlvr2_scoring.score, "accuracy"),
    "nlvr": (nlvr, nlvr_scoring.score, "accuracy"),
    "retrieval": (retrieval, retrieval_scoring.score, "R@1"),
}


def stored(root: Path, task: str, predictions: Sequence[Mapping[str, Any]], **changes: Any) -> Store:
    _, score, primary = TASKS[task]
    store = Store(root)
    record = make_record(
        "full",
        metrics={"test": score(predictions)},
        cell__task__name=task,
        cell__task__primary_metric=primary,
        **changes,
    )
    store.commit(record, predictions=predictions)
    return store


@pytest.mark.parametrize("task", TASKS)
def test_every_metric_is_computed_from_its_shares(task: str, tmp_path: Path) -> None:
    make, score, _ = TASKS[task]
    predictions = make()
    store = stored(tmp_path, task, predictions)
    metrics = score(predictions)
    assert len(metrics) > 1
    for name, value in metrics.items():
        (found,) = read_scores(store, store.records(), name)
        assert found.ratios.by_seed == pytest.approx([value], abs=1e-9), name
        assert found.examples == len(predictions)


def test_pictures_of_one_sentence_are_one_cluster_for_consistency_only(tmp_path: Path) -> None:
    store = stored(tmp_path, "nlvr2", nlvr2())
    clusters = {
        metric: read_scores(store, store.records(), metric)[0].ratios.clusters
        for metric in ("accuracy", "consistency")
    }
    assert clusters == {"accuracy": 40, "consistency": 20}


def test_a_third_partys_primary_metric_is_the_mean_score() -> None:
    task = make_record(
        cell__task__name="captioning", cell__task__primary_metric="hits", metrics={"test": {"hits": 1.0}}
    ).cell.task
    (share,) = shares_of(task, "hits")
    assert share.value({"id": "1", "score": 0.5}) == 0.5
    with pytest.raises(UserError, match="captioning: it is unknown which examples 'cider' counts"):
        shares_of(task, "cider")


@pytest.mark.parametrize("metric", ["rank", "XR@1", "TR@all"])
def test_unknown_metrics_are_refused(metric: str) -> None:
    task = make_record(
        cell__task__name="retrieval", cell__task__primary_metric="R@1", metrics={"test": {"R@1": 1.0}}
    ).cell.task
    with pytest.raises(UserError, match=f"'{metric}'"):
        shares_of(task, metric)


def test_third_party_scorer_declares_the_shares_of_its_secondary_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hard = Share(of=lambda each: bool(each["hard"]))
    scorer = Scorer(lambda predictions: {}, lambda metric: (hard,) if metric == "hits (hard)" else ())
    monkeypatch.setattr(scores, "resolve_scorer", lambda task: scorer)
    task = make_record(
        cell__task__name="captioning", cell__task__primary_metric="hits", metrics={"test": {"hits": 1.0}}
    ).cell.task
    assert shares_of(task, "hits (hard)") == (hard,)
    assert shares_of(task, "hits") == (Share(),)


def test_intervals_of_built_in_tasks_need_no_torch(tmp_path: Path) -> None:
    for task, (make, _, _) in TASKS.items():
        stored(tmp_path / task, task, make())
    code = (
        "import sys; from pathlib import Path; from harness.records.store import Store\n"
        "from harness.report.intervals import with_intervals; from harness.report.tables import build_tables\n"
        f"for root in Path({str(tmp_path)!r}).iterdir():\n"
        "    for table in build_tables(Store(root).records()):\n"
        "        notes = with_intervals(table, Store(root), 50).notes\n"
        "        assert not [note for note in notes if 'no intervals' in note.text]\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"


def change_first(store: Store, record: Record, **changes: Any) -> None:
    first, *others = store.predictions(record.cell.id)
    store.commit(record, predictions=[{**first, **changes}, *others])


def test_predictions_of_another_result_are_refused(tmp_path: Path) -> None:
    store = stored(tmp_path, "vqa", vqa())
    (record,) = store.records()
    first = next(store.predictions(record.cell.id))
    change_first(store, record, score=1 - first["score"] if first["score"] != 0.5 else 0.0)
    with pytest.raises(UserError, match="do not give the accuracy"):
        read_scores(store, [record])


def test_predictions_without_scores_are_refused(tmp_path: Path) -> None:
    store = stored(tmp_path, "vqa", vqa())
    (record,) = store.records()
    change_first(store, record, score=None)
    with pytest.raises(UserError, match="have no scores"):
        read_scores(store, [record])
    with pytest.raises(UserError, match="no metric 'nonsense'"):
        read_scores(store, [record], "nonsense")


def test_cells_that_predicted_other_examples_are_refused(tmp_path: Path) -> None:
    predictions = vqa()
    store = stored(tmp_path, "vqa", predictions)
    others = [{**each, "id": f"x{each['id']}"} for each in predictions]
    store.commit(make_record("lora", metrics={"test": vqa_scoring.score(others)}), predictions=others)
    with pytest.raises(UserError, match="predicted different test examples"):
        read_scores(store, store.records())


def test_the_order_of_predictions_does_not_matter(tmp_path: Path) -> None:
    predictions = vqa()
    store = stored(tmp_path, "vqa", predictions)
    store.commit(
        make_record("lora", metrics={"test": vqa_scoring.score(predictions)}), predictions=predictions[::-1]
    )
    first, second = read_scores(store, store.records())
    assert np.array_equal(first.ratios.minus(second.ratios).numerators, np.zeros((1, 1, 20)))
