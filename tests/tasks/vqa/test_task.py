"""VQA2.0 as a task: splits, targets, head, loss, predictions and the submission file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from harness.backbones.inputs import Inputs
from harness.errors import UserError
from harness.registry import build_task
from harness.specs import Spec
from tasks.base import Batch, Data, Example
from tasks.data.images import load_rgb
from tasks.vqa.columns import soft_scores
from tasks.vqa.scoring import soft_accuracy
from tasks.vqa.task import VQA, VQAOptions, VQATarget, majority_answer_accuracy
from tests.support.paths import SHARED, needs_shared_data


def write_split(root: Path, split: str, first_id: int, answers: list[str], annotated: bool = True) -> None:
    """Question k of the split is about image k // 2; all annotators agree on `answers[k]`."""
    rows = [(first_id + k, (first_id + k) // 2, answer) for k, answer in enumerate(answers)]
    questions = [{"question_id": q, "image_id": i, "question": f"what is {q}?"} for q, i, _ in rows]
    (root / f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(json.dumps({"questions": questions}))
    annotations = [
        {
            "question_id": q,
            "image_id": i,
            "answer_type": "yes/no" if answer in ("yes", "no") else "other",
            "multiple_choice_answer": answer,
            "answers": [{"answer": answer, "answer_id": k} for k in range(1, 11)],
        }
        for q, i, answer in rows
    ]
    if annotated:
        path = root / f"v2_mscoco_{split}_annotations.json"
        path.write_text(json.dumps({"annotations": annotations}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_split(tmp_path, "train2014", 1000, ["yes", "no", "cat"] * 20 + ["rare"])
    write_split(tmp_path, "val2014", 5000, ["yes", "yes", "unheard of"] * 10)
    return tmp_path


def ids(data: Data, split: str) -> list[str]:
    return [example.id for example in data.splits[split]]


def target(scores: dict[int, float], *answers: str, kind: str = "other") -> VQATarget:
    return VQATarget(scores, tuple(enumerate(answers, start=1)), kind)


def example(identifier: str, known: VQATarget | None) -> Example:
    return Example(identifier, "what?", (Path("x.jpg"),), known, "g")


def task_with(*answers: str) -> VQA:
    task = VQA()
    task.answers = answers
    return task


def test_validation_is_split_from_train_by_image_if_val_is_the_test_split(root: Path) -> None:
    data = VQA(VQAOptions(val_fraction=0.3)).load(root)
    groups = {split: {example.group for example in data.splits[split]} for split in data.splits}
    assert groups["train"].isdisjoint(groups["val"])
    assert len(ids(data, "train")) + len(ids(data, "val")) == 61 - 1  # "rare" is outside the vocabulary
    assert len(ids(data, "test")) == 30
    assert data.provenance["splits"]["val"]["official split"] == "train2014"
    assert data.provenance["splits"]["test"]["official split"] == "val2014"


def test_split_of_train_does_not_depend_on_the_rest_of_the_file(root: Path) -> None:
    before = set(ids(VQA(VQAOptions(val_fraction=0.3)).load(root), "val"))
    write_split(root, "train2014", 1000, ["yes", "no", "cat"] * 18)
    after = set(ids(VQA(VQAOptions(val_fraction=0.3)).load(root), "val"))
    assert after == {identifier for identifier in before if int(identifier) < 1000 + 54}


def test_official_splits_are_used_unchanged_if_test2015_is_annotated(root: Path) -> None:
    write_split(root, "test2015", 9000, ["no", "cat"] * 3)
    data = VQA().load(root)
    assert [len(ids(data, split)) for split in ("train", "val", "test")] == [60, 30, 6]
    origins = data.provenance["splits"]
    assert [origins[split]["official split"] for split in ("train", "val", "test")] == [
        "train2014",
        "val2014",
        "test2015",
    ]
    assert len(data.provenance["files"]) == 6


def test_trainval_holds_out_images_of_val_as_vilt_does_or_none_as_meter_does(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_split(root, "test2015", 9000, ["no"] * 6, annotated=False)
    monkeypatch.setattr("tasks.vqa.task.HELD_OUT", 4)
    data = VQA(VQAOptions(train="trainval")).load(root)
    official = {split: {each.group for each in data.splits[split]} for split in ("train", "val", "test")}
    assert len(official["val"]) == 4  # of val2014's 15, two questions each
    assert len(ids(data, "val")) == 8
    assert official["train"].isdisjoint(official["val"])
    assert len(official["train"] & {str(image) for image in range(2500, 2515)}) == 11
    assert len(ids(data, "train")) == 60 + 22  # "rare" is outside the vocabulary
    assert data.provenance["splits"]["train"]["official split"] == "train2014+val2014"
    seen = VQA(VQAOptions(train="trainval", holdout="meter")).load(root)
    assert len(ids(seen, "val")) == 30
    assert len(ids(seen, "train")) == 60 + 30
    assert seen.provenance["splits"]["val"]["part"] == "all, which training has seen"


def test_questions_of_two_files_keep_their_texts_images_and_answers(root: Path) -> None:
    write_split(root, "test2015", 9000, ["no"], annotated=False)
    train = VQA(VQAOptions(train="trainval", holdout="meter")).load(root).splits["train"]
    last, first_of_val = train[-1], train[60]
    assert (first_of_val.id, first_of_val.text, first_of_val.group) == ("5000", "what is 5000?", "2500")
    assert first_of_val.images == (root / "val2014/COCO_val2014_000000002500.jpg",)
    assert first_of_val.target.answers == tuple((k, "yes") for k in range(1, 11))
    assert last.id == "5029"
    assert train[0].images == (root / "train2014/COCO_train2014_000000000500.jpg",)
    assert [each.id for each in train[58:62]] == ["1058", "1059", "5000", "5001"]


def test_trainval_cannot_report_on_val2014() -> None:
    with pytest.raises(UserError, match="cannot be the test split"):
        build_task(Spec("vqa", {"train": "trainval", "test": "val2014"}))


def test_options_younger_than_stored_results_are_named_only_where_they_are_set() -> None:
    assert "train" not in VQA().config()
    assert VQA(VQAOptions(train="trainval")).config()["train"] == "trainval"


def test_test2015_without_annotations_is_used_only_on_request(root: Path) -> None:
    write_split(root, "test2015", 9000, ["no"] * 6, annotated=False)
    assert VQA().load(root).provenance["splits"]["test"]["official split"] == "val2014"
    task = VQA(VQAOptions(test="test2015"))
    data = task.load(root)
    assert task.collate_targets(data.splits["test"]) is None
    (first, *_) = task.predict(torch.zeros(6, len(task.answers)), data.splits["test"])
    assert first["score"] is None
    with pytest.raises(UserError, match="no annotations"):
        task.score([first])


def test_vocabulary_is_counted_over_train_and_val(root: Path) -> None:
    task = VQA()
    data = task.load(root)
    assert task.answers == ("yes", "cat", "no", "unheard of")
    assert data.provenance["answers"]["count"] == 4


def test_questions_without_a_known_answer_are_left_out_of_train_but_not_of_test(root: Path) -> None:
    (root / "trainval_label2ans.json").write_text('["no", "yes", "cat"]')
    task = VQA()
    data = task.load(root)
    assert task.answers == ("no", "yes", "cat")
    assert data.provenance["answers"]["source"] == "trainval_label2ans.json"
    assert all(example.target.scores for example in data.splits["train"])
    assert sum(not example.target.scores for example in data.splits["test"]) == 10


def test_answer_list_can_be_named(root: Path) -> None:
    path = root / "mine.json"
    path.write_text('{"no": 1, "yes": 0}')
    task = VQA(VQAOptions(answers=str(path)))
    task.load(root)
    assert task.answers == ("yes", "no")
    with pytest.raises(UserError, match=r"gone\.json: no such file"):
        VQA(VQAOptions(answers=str(root / "gone.json"))).load(root)


def test_limits_choose_by_hash_and_keep_the_order(root: Path) -> None:
    everything = VQA().load(root)
    options = VQAOptions(limit_train=10, limit_val=2, limit_test=5)
    limited = VQA(options).load(root)
    for split, limit in (("train", 10), ("val", 2), ("test", 5)):
        kept = ids(limited, split)
        assert len(kept) == limit
        assert kept == [identifier for identifier in ids(everything, split) if identifier in set(kept)]
    assert ids(limited, "test") != ids(everything, "test")[:5]
    other = VQA(replace(options, limit_seed=1)).load(root)
    assert ids(other, "test") != ids(limited, "test")
    # A smaller limit is a part of a larger one.
    fewer = VQA(replace(options, limit_test=3)).load(root)
    assert set(ids(fewer, "test")) < set(ids(limited, "test"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": "0"}, "vqa: val_fraction must lie between 0 and 1"),
        ({"limit_test": "0"}, "vqa: limit_test must be at least 1"),
        ({"test": "train2014"}, "vqa: test must be auto, val2014"),
    ],
)
def test_bad_options_are_named(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_task(Spec("vqa", options))


def test_images_are_described_without_being_opened(root: Path) -> None:
    before = VQA().load(root).provenance["splits"]["test"]
    assert (before["images"], before["images missing"]) == (15, 15)
    (root / "val2014").mkdir()
    (root / "val2014" / "COCO_val2014_000000002500.jpg").write_bytes(b"not opened")
    after = VQA().load(root).provenance["splits"]["test"]
    assert (after["images"], after["images missing"]) == (15, 14)
    assert after["image digest"] != before["image digest"]
    json.dumps(VQA().load(root).provenance)


def test_targets_are_soft_scores_in_their_columns() -> None:
    task = task_with("yes", "no", "cat")
    examples = [
        example("1", target({0: 0.9, 2: 0.3})),
        example("2", target({})),
        example("3", target({1: 1.0})),
    ]
    targets = task.collate_targets(examples)
    assert targets is not None
    assert targets.dtype == torch.float32
    assert targets.tolist() == torch.tensor([[0.9, 0, 0.3], [0, 0, 0], [0, 1, 0]]).tolist()
    assert task.collate_targets([example("2", target({}))]) is not None
    assert task.collate_targets([*examples, example("4", None)]) is None


@given(st.lists(st.sampled_from(["yes", "no", "cat", "dog"]), min_size=10, max_size=10))
def test_target_scores_are_the_official_accuracies(answers: list[str]) -> None:
    pairs = tuple(enumerate(answers, start=1))
    classes = {"yes": 0, "no": 1, "cat": 2, "dog": -1}
    scores = soft_scores(np.array([classes[answer] for answer in answers]))
    for index, answer in enumerate(("yes", "no", "cat")):
        assert scores.get(index, 0.0) == pytest.approx(soft_accuracy(answer, pairs))


def test_head_is_the_published_one_and_draws_only_from_its_generator() -> None:
    task = task_with(*map(str, range(3129)))
    state = torch.random.get_rng_state()
    vilt: Any = SimpleNamespace(width=768, feature_dim=768)
    head = task.build_head(vilt, torch.Generator().manual_seed(1))
    again = task.build_head(vilt, torch.Generator().manual_seed(1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [tuple(p.shape) for p in head.parameters()] == [
        (1536, 768),
        (1536,),
        (1536,),
        (1536,),
        (3129, 1536),
        (3129,),
    ]
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters(), strict=True))
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.01)
            assert not layer.bias.any()
    meter: Any = SimpleNamespace(width=768, feature_dim=1536)
    first = next(task.build_head(meter, torch.Generator()).parameters())
    assert tuple(first.shape) == (1536, 1536)


def test_forward_puts_the_head_on_the_pooled_feature() -> None:
    inputs = Inputs(torch.zeros(2, 3, dtype=torch.int64), None, torch.ones(2, 3, 4, 4))

    def backbone(given: Inputs) -> Tensor:
        return given.pixels.mean(dim=(2, 3))

    stand_in: Any = backbone
    logits = task_with("a", "b").forward(stand_in, nn.Identity(), Batch((inputs,), None, ("1", "2")))
    assert logits.shape == (2, 3)


def test_loss_is_the_sum_over_labels_averaged_over_examples() -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.rand(4, 7, generator=torch.Generator().manual_seed(1))
    p = logits.sigmoid()
    by_hand = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum(dim=1).mean()
    assert VQA().loss(logits, targets).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_predictions_carry_the_official_accuracy() -> None:
    task = task_with("yes", "2", "cat")
    examples = [
        example("1", target({}, *["two"] * 2, *["dog"] * 8, kind="number")),
        example("2", target({}, *["two"] * 10, kind="number")),
    ]
    predictions = task.predict(torch.tensor([[0.0, 2.0, 1.0]] * 2), examples)
    assert predictions[0] == {
        "id": "1",
        "group": "g",
        "question": "what?",
        "answer": "2",
        "answer_type": "number",
        "score": pytest.approx(0.6),
    }
    assert predictions[1]["score"] == 0  # all ten wrote "two", and then nothing is normalised
    json.dumps(predictions)
    assert task.score(predictions) == pytest.approx({"accuracy": 30, "number": 30})


def test_submission_has_the_format_of_the_evaluation_server(tmp_path: Path) -> None:
    predictions = [{"id": "11", "answer": "no"}, {"id": "2", "answer": "café"}]
    VQA().write_submission(predictions, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == [
        {"question_id": 2, "answer": "café"},
        {"question_id": 11, "answer": "no"},
    ]


def test_majority_answer_of_train_is_scored_on_test() -> None:
    train = [example(str(k), target({}, *["no"] * 6, *["yes"] * 4)) for k in range(3)]
    test = [example("8", target({}, *["no"] * 3, *["yes"] * 7)), example("9", target({}, *["yes"] * 10))]
    data = Data({"train": train, "val": [], "test": test}, {})
    assert majority_answer_accuracy(data) == pytest.approx(45)


def test_options_are_recorded() -> None:
    assert VQA(VQAOptions(limit_test=3)).config()["limit_test"] == 3


@needs_shared_data
def test_real_photographs_of_daquar() -> None:
    task = VQA(VQAOptions(limit_train=50))
    data = task.load(SHARED / "vqa2-daquar")
    assert len(data.splits["test"]) == 5_076
    assert len(data.splits["train"]) == 50
    assert all(origin["images missing"] == 0 for origin in data.provenance["splits"].values())
    loaded = [load_rgb(example.images[0]) for example in data.splits["test"][:3]]
    assert all(isinstance(image, Image.Image) and min(image.size) == 224 for image in loaded)
    assert 0 < majority_answer_accuracy(data) < 20


@needs_shared_data
def test_real_vqa2_needs_no_images_to_be_read() -> None:
    task = VQA()
    data = task.load(SHARED / "annotations_only" / "vqa2")
    assert len(task.answers) == 3_129
    assert len(data.splits["test"]) == 8_977
    targets = task.collate_targets(data.splits["test"][:64])
    assert targets is not None
    assert targets.shape == (64, 3_129)
