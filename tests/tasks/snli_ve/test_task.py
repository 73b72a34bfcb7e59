"""SNLI-VE: the image is the premise, the hypothesis the only text; accuracy overall and per class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from harness.errors import UserError
from tasks.base import Example
from tasks.classification.task import Label
from tasks.data.images import load_rgb
from tasks.snli_ve.scoring import score
from tasks.snli_ve.task import SNLIVE, SNLIVEOptions
from tests.support.paths import SHARED, needs_shared_data


def entry(identifier: str, label: str, image: str = "42") -> dict[str, Any]:
    return {
        "pairID": identifier,
        "gold_label": label,
        "Flickr30K_ID": image,
        "sentence1": "A man rides.",
        "sentence2": f"hypothesis {identifier}",
    }


def write(root: Path, split: str, *entries: Any) -> None:
    text = "".join(f"{json.dumps(one)}\n" for one in entries)
    (root / f"snli_ve_{split}.jsonl").write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(
        tmp_path,
        "train",
        entry("1", "entailment"),
        entry("2", "-"),
        entry("3", "neutral", "7"),
        entry("4", "neutral"),
    )
    write(tmp_path, "dev", entry("5", "contradiction"))
    write(tmp_path, "test", entry("6", "neutral"), entry("7", "entailment"), entry("8", "contradiction"))
    return tmp_path


def test_hypothesis_is_the_text_and_the_photograph_the_premise(root: Path) -> None:
    data = SNLIVE().load(root)
    assert list(data.splits["train"]) == [
        Example("1", "hypothesis 1", (root / "flickr30k_images" / "42.jpg",), Label(2), "42"),
        Example("3", "hypothesis 3", (root / "flickr30k_images" / "7.jpg",), Label(1), "7"),
        Example("4", "hypothesis 4", (root / "flickr30k_images" / "42.jpg",), Label(1), "42"),
    ]
    assert [example.target.index for example in data.splits["test"]] == [1, 2, 0]
    origins = data.provenance["splits"]
    assert [origins[split]["official split"] for split in ("train", "val", "test")] == [
        "train",
        "dev",
        "test",
    ]
    assert origins["train"]["left out, no gold label"] == 1
    assert (origins["train"]["images"], origins["train"]["images missing"]) == (2, 2)
    assert set(data.provenance["files"]) == {f"snli_ve_{name}.jsonl" for name in ("train", "dev", "test")}


def test_image_folder_has_either_name_or_is_a_link_checked_out_as_text(root: Path) -> None:
    photographs = root / "elsewhere"
    photographs.mkdir()
    (photographs / "42.jpg").write_bytes(b"not opened")
    (root / "flickr30k_images").write_text("elsewhere\n")
    found = SNLIVE().load(root)
    assert found.splits["val"][0].images[0].samefile(photographs / "42.jpg")
    assert found.provenance["splits"]["val"]["images missing"] == 0
    (root / "flickr30k_images").unlink()
    photographs.rename(root / "flickr30k-images")
    assert SNLIVE().load(root).splits["val"][0].images[0] == root / "flickr30k-images" / "42.jpg"


def test_accuracy_overall_and_per_class_by_hand() -> None:
    rows = [
        ("contradiction", 1.0),
        ("contradiction", 0.0),
        ("entailment", 1.0),
        ("neutral", 0.0),
        ("entailment", 1.0),
    ]
    predictions = [{"id": str(k), "label": label, "score": s} for k, (label, s) in enumerate(rows)]
    assert score(predictions) == {"accuracy": 60, "contradiction": 50, "entailment": 100, "neutral": 0}


def test_classes_are_in_the_published_order() -> None:
    task = SNLIVE()
    examples = [Example(str(k), "", (), Label(k), "g") for k in range(3)]
    predictions = task.predict(torch.eye(3), examples)
    assert [each["prediction"] for each in predictions] == ["contradiction", "neutral", "entailment"]
    assert task.score(predictions)["accuracy"] == 100


def test_majority_label_is_that_of_train(root: Path) -> None:
    task = SNLIVE()
    assert task.majority_score(task.load(root)) == pytest.approx(100 / 3)


def test_published_recipe() -> None:
    assert (SNLIVE.recipe.epochs, SNLIVE.recipe.batch_size) == (5, 64)


def test_predictions_are_written_by_pair(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    rows = [{"id": "b", "prediction": "neutral"}, {"id": "a", "prediction": "entailment"}]
    SNLIVE().write_submission(rows, path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"pairID": "a", "prediction": "entailment"},
        {"pairID": "b", "prediction": "neutral"},
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entry("9", "maybe"), r"snli_ve_test\.jsonl: line 2: a label is one of contradiction, neutral, ent"),
        (entry("6", "neutral"), r"line 2: pairID '6' appears twice"),
        (entry("9", "neutral") | {"Flickr30K_ID": 42}, r"line 2: 'Flickr30K_ID' must be a string, not 42"),
        ({"gold_label": "neutral"}, r"line 2: missing key 'pairID'"),
    ],
)
def test_bad_entries_are_named_by_file_and_line(root: Path, bad: Any, message: str) -> None:
    write(root, "test", entry("6", "neutral"), bad)
    with pytest.raises(UserError, match=message):
        SNLIVE().load(root)


def test_a_split_without_gold_labels_is_empty(root: Path) -> None:
    write(root, "dev", entry("5", "-"))
    with pytest.raises(UserError, match=r"dev \(all\) has no examples for the val split"):
        SNLIVE().load(root)


@needs_shared_data
def test_real_pairs_and_photographs() -> None:
    data = SNLIVE(SNLIVEOptions(limit_train=50)).load(SHARED / "snli_ve")
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [50, 3_217, 4_155]
    assert all(origin["images missing"] == 0 for origin in data.provenance["splits"].values())
    assert isinstance(load_rgb(data.splits["test"][0].images[0]), Image.Image)
    groups = [{example.group for example in data.splits[split]} for split in ("train", "val", "test")]
    assert not groups[0] & groups[1] | groups[1] & groups[2] | groups[0] & groups[2]
