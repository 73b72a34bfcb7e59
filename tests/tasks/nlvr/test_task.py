"""The first NLVR corpus: six images per example, accuracy over images, consistency over the six."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.registry import build_task
from harness.specs import parse_spec
from tasks.base import Example
from tasks.classification.task import Label
from tasks.data.images import load_rgb
from tasks.nlvr.files import read_predictions
from tasks.nlvr.scorer import read_truths
from tasks.nlvr.scoring import score
from tasks.nlvr.task import NLVR, NLVROptions
from tests.support.paths import SHARED, needs_shared_data


def entry(identifier: str, label: str = "true", directory: str = "3") -> dict[str, Any]:
    return {"identifier": identifier, "sentence": f"s {identifier}", "label": label, "directory": directory}


def write(root: Path, split: str, *entries: Any) -> None:
    (root / split).mkdir(exist_ok=True)
    text = "".join(f"{json.dumps(one)}\n" for one in entries)
    (root / split / f"{split}.json").write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "dev", *(entry(f"{k}-{boxes}", "false") for k in range(20) for boxes in range(2)))
    write(tmp_path, "test", entry("7-0"), entry("7-2", "false"))
    return tmp_path


def test_an_example_has_six_images(root: Path) -> None:
    test = NLVR().load(root).splits["test"]
    assert [example.id for example in test] == [
        *(f"test-7-0-{k}" for k in range(6)),
        *(f"test-7-2-{k}" for k in range(6)),
    ]
    assert test[8] == Example(
        "test-7-2-2", "s 7-2", (root / "test" / "images" / "3" / "test-7-2-2.png",), Label(0), "test-7"
    )


def test_hidden_images_are_found_by_name(root: Path) -> None:
    statement = {key: value for key, value in entry("9-1").items() if key != "directory"}
    write(root, "hidden", statement)
    (root / "hidden" / "hidden.json").rename(root / "hidden" / "hidden_final.json")
    places = {"hidden-9-1-0.png": "4", "hidden-9-1-1.png": "5", "hidden-9-1-2.png": "4"}
    for name, folder in places.items():
        (root / "hidden" / "images" / folder).mkdir(parents=True, exist_ok=True)
        (root / "hidden" / "images" / folder / name).touch()
    test = build_task(parse_spec("nlvr[test=hidden]")).load(root).splits["test"]
    assert [example.id for example in test] == [f"hidden-9-1-{k}" for k in range(6)]
    images = root / "hidden" / "images"
    assert [example.images[0] for example in test[:3]] == [
        images / folder / name for name, folder in places.items()
    ]
    assert test[3].images[0] == images / "hidden-9-1-3.png"  # missing
    assert list(NLVR().read_official(root, "hidden")) == list(test)
    assert list(read_truths(root / "hidden" / "hidden_final.json")) == [example.id for example in test]


def test_an_image_in_another_folder_than_stated_is_found(root: Path) -> None:
    images = root / "test" / "images"
    for folder in ("3", "8"):
        (images / folder).mkdir(parents=True)
        (images / folder / "test-7-0-0.png").touch()
    (images / "8" / "test-7-0-1.png").touch()
    test = NLVR().load(root).splits["test"]
    assert [example.images[0].parent.name for example in test[:2]] == ["3", "8"]


def test_dev_is_split_by_sentence_if_train_is_missing(root: Path) -> None:
    data = NLVR(NLVROptions(val_fraction=0.3)).load(root)
    groups = {split: {example.group for example in data.splits[split]} for split in ("train", "val")}
    assert groups["train"]
    assert groups["val"]
    assert groups["train"].isdisjoint(groups["val"])
    assert len(data.splits["train"]) + len(data.splits["val"]) == 20 * 2 * 6
    origins = data.provenance["splits"]
    assert [origins[split]["official split"] for split in ("train", "val", "test")] == ["dev", "dev", "test"]
    assert "val_fraction=0.3" in origins["val"]["part"]


def test_train_is_used_if_present_unless_dev_is_requested(root: Path) -> None:
    write(root, "train", *(entry(f"{k}-0") for k in range(3)))
    task = NLVR()
    data = task.load(root)
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [18, 240, 12]
    assert task.majority_score(data) == 50
    asked = build_task(parse_spec("nlvr[train=dev,limit_val=5]")).load(root)
    assert asked.provenance["splits"]["train"]["official split"] == "dev"
    assert len(asked.splits["val"]) == 5


def test_consistency_by_hand() -> None:
    # Sentence 1 has two examples, one of them with a wrong order; sentence 2 has one, all right.
    wrong = {"dev-1-2-4"}
    ids = [f"dev-{example}-{k}" for example in ("1-0", "1-2", "2-0") for k in range(6)]
    predictions = [{"id": name, "score": float(name not in wrong)} for name in ids]
    assert score(predictions) == pytest.approx(
        {"accuracy": 100 * 17 / 18, "consistency": 50, "consistency (orders)": 100 * 2 / 3}
    )


def test_submission_is_what_the_official_script_reads(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    rows = [{"id": "test-7-0-1", "prediction": "True"}, {"id": "test-7-0-0", "prediction": "False"}]
    NLVR().write_submission(rows, path)
    assert path.read_text() == "test-7-0-0.png,false\ntest-7-0-1.png,true\n"
    assert read_predictions(path) == {"test-7-0-0": "False", "test-7-0-1": "True"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entry("1-0-0"), r"dev\.json: line 2: an identifier has two parts"),
        (entry("0-0"), r"line 2: '0-0' appears twice"),
        (entry("1-0", "perhaps"), r"line 2: a label is True or False, not 'perhaps'"),
        (entry("1-0") | {"directory": 3}, r"line 2: 'directory' must be a string, not 3"),
    ],
)
def test_bad_entries_are_named_by_file_and_line(root: Path, bad: Any, message: str) -> None:
    write(root, "dev", entry("0-0"), bad)
    with pytest.raises(UserError, match=message):
        NLVR().load(root)


def test_bad_options_and_missing_files_are_named(root: Path) -> None:
    with pytest.raises(UserError, match="val_fraction must lie between 0 and 1, not"):
        build_task(parse_spec("nlvr[val_fraction=1.0]"))
    with pytest.raises(UserError, match="nlvr: limit_test must be at least 1"):
        build_task(parse_spec("nlvr[limit_test=0]"))
    with pytest.raises(UserError, match=r"looked for train/train\.json, .* found none"):
        NLVR(NLVROptions(train="train")).load(root)


@needs_shared_data
def test_real_corpus() -> None:
    task = NLVR()
    data = task.load(SHARED / "nlvr")
    assert len(data.splits["train"]) + len(data.splits["val"]) == 989 * 6
    assert len(data.splits["test"]) == 990 * 6
    assert all(origin["images missing"] == 0 for origin in data.provenance["splits"].values())
    assert load_rgb(data.splits["val"][0].images[0]).size == (400, 100)
    majority = task.majority_score(data)
    assert majority == pytest.approx(100 * 556 / 990)
