"""Which sets an audit trains, with which cells, and what it makes of their records."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from harness.config import RunSettings
from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment.audit import Question, fitting_choosers, read_skip, run_audit, sets_to_train
from harness.specs import Spec, canonical

ONE = [f"joint.{i}" for i in range(4)]
TWO = [f"{stream}.{i}" for stream in ("text", "image") for i in range(3)]


def test_all_sets_are_trained_unless_a_number_is_given() -> None:
    drawn, beside = sets_to_train(ONE, (2,), None, [("joint.0", "joint.1")])
    assert len(drawn) == len(set(drawn)) == 6
    assert beside == []
    drawn, beside = sets_to_train(TWO, (1, 2), None, [])
    assert len(set(drawn)) == 9
    assert all([part.split(".")[0] for part in each] == ["text", "image", "image"] for each in drawn)


def test_random_sets_are_different_and_the_same_every_time() -> None:
    chosen = [("joint.0", "joint.1", "joint.2"), ("joint.0", "joint.1", "joint.2")]
    parts = [f"joint.{i}" for i in range(12)]
    drawn, beside = sets_to_train(parts, (3,), 20, chosen)
    assert len(set(drawn)) == 20
    assert all(list(each) == sorted(each, key=parts.index) for each in drawn)
    assert set(beside) == set(chosen) - set(drawn)
    assert sets_to_train(parts, (3,), 20, chosen) == (drawn, beside)


def test_sets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"skip=2\+2 does not fit 4 parts \(joint\)"):
        sets_to_train(ONE, (2, 2), None, [])
    with pytest.raises(UserError, match="does not fit"):
        sets_to_train(ONE, (4,), None, [])
    with pytest.raises(UserError, match="give the number of random ones"):
        sets_to_train([f"joint.{i}" for i in range(30)], (6,), None, [])
    with pytest.raises(UserError, match="not '2,2'"):
        read_skip("2,2")
    assert read_skip("2+2") == (2, 2)


def test_method_and_rivals_skip_equally_many_blocks() -> None:
    question = Question(Spec("das", {"bottleneck": "8"}), (2, 2), None)
    specs = [canonical(spec) for spec in question.choosers]
    assert specs[:2] == ["das[bottleneck=8,skip=4]", "skip[choice=last,skip=4]"]
    assert len(specs) == 7
    assert canonical(question.fixed(("text.0", "image.1"))) == "das[blocks=text.0+image.1,bottleneck=8]"
    with pytest.raises(UserError, match="has no rivals to compare with"):
        _ = Question(Spec("lora"), (2,), None).choosers


def test_rivals_that_refuse_the_backbone_are_left_out() -> None:
    question = Question(Spec("das"), (2,), None)
    settings = make_settings(methods="das", tasks="vqa", seeds=(0, 1))
    assert fitting_choosers(settings, question) == question.choosers
    writing = fitting_choosers(settings.model_copy(update={"backbone": "llava-mini"}), question)
    left_out = [canonical(spec) for spec in question.choosers if spec not in writing]
    assert left_out == ["skip[choice=alignment,skip=2]"]


def record(label: str, seed: int, score: float, skipped: Sequence[str] = ()) -> Any:
    diagram = SimpleNamespace(blocks=tuple(ONE), skipped=tuple(skipped)) if skipped else None
    task = SimpleNamespace(higher_is_better=True)
    cell = SimpleNamespace(method=SimpleNamespace(label=label), seed=seed, task=task)
    search = None if diagram is None else SimpleNamespace(diagram=diagram)
    return SimpleNamespace(cell=cell, search=search, primary=score, error=None)


def score(skipped: Sequence[str], seed: int) -> float:
    return 10.0 * ("joint.3" in skipped) + seed


def test_choosers_run_first_and_then_every_set() -> None:
    settings = make_settings(methods="das", tasks="vqa", seeds=(0, 1))
    ran: list[list[str]] = []

    def run(asked: RunSettings) -> list[Any]:
        labels = [canonical(spec) for spec in asked.methods]
        ran.append(labels)
        records = []
        for seed in asked.seeds:
            for spec, label in zip(asked.methods, labels, strict=True):
                given = spec.options.get("blocks")
                if given is None:
                    records.append(
                        record(label, seed, 0.0, ("joint.3",) if spec.name == "das" else ("joint.0",))
                    )
                else:
                    records.append(record(label, seed, score(given.split("+"), seed)))
        return records

    found = run_audit(settings, Question(Spec("das"), (1,), None), run)
    assert found is not None
    assert [len(labels) for labels in ran] == [7, 4]
    assert found.sets[0] == ("joint.3",)
    das, last, *_ = found.choosers
    assert (das.label, das.score, das.rank, das.gain.estimate) == ("das[skip=1]", 10.5, 1.0, 7.5)
    assert last.score == 0.5
    assert run_audit(settings, Question(Spec("das"), (1,), None), lambda asked: None) is None


def test_failed_cell_stops_the_comparison() -> None:
    settings = make_settings(methods="das", tasks="vqa", seeds=(0, 1))

    def run(asked: RunSettings) -> list[Any]:
        if "skip" in asked.methods[0].options:
            return [record("das[skip=1]", seed, 0.0, ("joint.3",)) for seed in asked.seeds]
        return [record(canonical(spec), 0, 1.0) for spec in asked.methods]

    with pytest.raises(UserError, match=r"joint\.0: a cell has failed"):
        run_audit(settings, Question(Spec("das"), (1,), None), run)
    with pytest.raises(UserError, match="at least two seeds"):
        run_audit(
            make_settings(methods="das", tasks="vqa", seeds=(0,)), Question(Spec("das"), (1,), None), run
        )
