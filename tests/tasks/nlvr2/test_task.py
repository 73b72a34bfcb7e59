"""NLVR2: official files, two passes with token types of their own, accuracy, consistency and subsets."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.backbones.inputs import Inputs
from harness.backbones.vilt.loading import full_size_config
from harness.backbones.vilt.model import ViltBackbone
from harness.backbones.vilt.processor import ViltProcessor
from harness.errors import UserError
from harness.measure.flops import count_forward
from harness.registry import build_task
from harness.specs import parse_spec
from tasks.base import Batch, Data, Example
from tasks.classification.task import Label
from tasks.nlvr2.files import consistency_group, image_paths, read_predictions, read_split
from tasks.nlvr2.scoring import score
from tasks.nlvr2.task import NLVR2, NLVR2Options
from tests.support.paths import SHARED, needs_shared_data


def entry(identifier: str, label: str = "True", **more: Any) -> dict[str, Any]:
    return {"identifier": identifier, "sentence": f"sentence {identifier}", "label": label, **more}


def write(path: Path, *entries: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(one)}\n" for one in entries))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(
        tmp_path / "train.json",
        *(entry(f"train-{k}-{p}-0", "False", directory=k % 3) for k in range(5) for p in range(2)),
        entry("train-9-0-1", "True", directory=9),
    )
    write(tmp_path / "dev.json", *(entry(f"dev-{k}-0-0") for k in range(4)))
    write(tmp_path / "test1.json", *(entry(f"test1-{k}-0-1", "True" if k else "False") for k in range(4)))
    return tmp_path


def prediction(identifier: str, right: bool, *subsets: str) -> dict[str, Any]:
    return {"id": identifier, "score": float(right), **({"subsets": list(subsets)} if subsets else {})}


def test_splits_images_and_groups_are_the_official_ones(root: Path) -> None:
    data = NLVR2().load(root)
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [11, 4, 4]
    first = data.splits["train"][3]
    assert first == Example(
        "train-1-1-0",
        "sentence train-1-1-0",
        (
            root / "images" / "train" / "1" / "train-1-1-img0.png",
            root / "images" / "train" / "1" / "train-1-1-img1.png",
        ),
        Label(0),
        "train-1",
    )
    origins = data.provenance["splits"]
    assert [origins[split]["official split"] for split in ("train", "val", "test")] == [
        "train",
        "dev",
        "test1",
    ]
    assert (origins["test"]["images"], origins["test"]["images missing"]) == (8, 8)
    assert set(data.provenance["files"]) == {"train.json", "dev.json", "test1.json"}
    json.dumps(data.provenance)


def test_images_are_found_in_the_folders_of_the_archive(root: Path) -> None:
    (root / "dev").mkdir()
    (root / "dev" / "dev-2-0-img1.png").write_bytes(b"not opened")
    data = NLVR2().load(root)
    assert data.splits["val"][2].images[1] == root / "dev" / "dev-2-0-img1.png"
    assert data.provenance["splits"]["val"]["images missing"] == 7


def test_labels_are_found_in_a_clone_of_the_repository_and_may_be_gzipped(root: Path) -> None:
    for path in root.glob("*.json"):
        folder = root / "nlvr2" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert len(NLVR2().load(root).splits["train"]) == 11


def test_subsets_are_reported_if_their_files_exist(root: Path) -> None:
    write(root / "balanced" / "balanced_test1.json", *(entry(f"test1-{k}-0-1") for k in (1, 2)))
    write(root / "unbalanced_test1.json", entry("test1-3-0-1"))
    task = NLVR2()
    data = task.load(root)
    assert [example.target.subsets for example in data.splits["test"]] == [
        (),
        ("balanced",),
        ("balanced",),
        ("unbalanced",),
    ]
    assert data.provenance["splits"]["test"]["subsets"] == {"balanced": 2, "unbalanced": 1}
    # Logits say True for all but the third; the first is False.
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    metrics = task.score(task.predict(logits, data.splits["test"]))
    assert metrics == {
        "accuracy": 50,
        "consistency": 50,
        "accuracy (balanced)": 50,
        "consistency (balanced)": 50,
        "accuracy (unbalanced)": 100,
        "consistency (unbalanced)": 100,
    }


def test_consistency_by_hand() -> None:
    predictions = [
        # One sentence with three pairs, one of them wrong.
        prediction("dev-1-0-0", True),
        prediction("dev-1-1-0", False),
        prediction("dev-1-3-0", True),
        # The other sentence of the same set, all right.
        prediction("dev-1-0-1", True),
        prediction("dev-1-3-1", True),
        # Another set, a single pair, right; and one that is wrong.
        prediction("dev-2-2-0", True),
        prediction("dev-3-0-1", False),
    ]
    assert score(predictions) == pytest.approx({"accuracy": 100 * 5 / 7, "consistency": 100 * 2 / 4})


def test_groups_are_sentences_of_a_set() -> None:
    assert consistency_group("dev-850-0-1") == consistency_group("dev-850-3-1")
    assert consistency_group("dev-850-0-1") != consistency_group("dev-850-0-0")
    assert consistency_group("dev-85-0-0") != consistency_group("dev-8-5-0")


identifiers = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 1)).map(
    lambda fields: "dev-{}-{}-{}".format(*fields)
)


@settings(deadline=None)
@given(st.dictionaries(identifiers, st.booleans(), min_size=1))
def test_consistency_is_between_zero_and_the_bound_from_accuracy(rights: dict[str, bool]) -> None:
    metrics = score([prediction(identifier, right) for identifier, right in rights.items()])
    groups = {consistency_group(identifier) for identifier in rights}
    wrong = {consistency_group(identifier) for identifier, right in rights.items() if not right}
    assert metrics["consistency"] == pytest.approx(100 * len(groups - wrong) / len(groups))
    assert (metrics["consistency"] == 100) == (metrics["accuracy"] == 100)
    reversed_order = score([prediction(name, right) for name, right in reversed(rights.items())])
    assert reversed_order == metrics


def test_each_image_has_a_pass_with_its_own_token_type() -> None:
    asked: list[int] = []

    class Fake:
        width, feature_dim = 4, 4
        rows = 2

        def widen_token_types(self, count: int) -> None:
            self.rows = max(self.rows, count)

        def __call__(self, inputs: Inputs) -> Tensor:
            assert inputs.image_token_type < self.rows
            asked.append(inputs.image_token_type)
            return inputs.pixels.mean(dim=(2, 3)) * inputs.image_token_type

    ids = torch.zeros(2, 3, dtype=torch.int64)
    images = [Inputs(ids, None, torch.full((2, 3, 4, 4), value)) for value in (1.0, 5.0)]
    backbone: Any = Fake()
    logits = NLVR2().forward(backbone, nn.Identity(), Batch(tuple(images), None, ("1", "2")))
    assert asked == [1, 2]
    assert logits.tolist() == [[1, 1, 1, 10, 10, 10]] * 2


def test_head_is_the_published_one_and_token_types_are_three() -> None:
    widened: list[int] = []
    for feature_dim, first in ((768, (1536, 1536)), (1536, (1536, 3072))):
        backbone: Any = SimpleNamespace(width=768, feature_dim=feature_dim, widen_token_types=widened.append)
        head = NLVR2().build_head(backbone, torch.Generator().manual_seed(0))
        shapes = [tuple(parameter.shape) for parameter in head.parameters()]
        assert shapes == [first, (1536,), (1536,), (1536,), (2, 1536), (2,)]
    assert widened == [3, 3]


def test_parameters_and_macs_of_vilt_are_the_published_ones() -> None:
    with torch.device("meta"):
        config = full_size_config()
        processor = ViltProcessor(None, config.image_size, config.patch_size, config.max_position_embeddings)
        backbone, untouched = (ViltBackbone(config, processor) for _ in range(2))
    task = NLVR2()
    head = task.build_head(backbone, torch.Generator()).to("meta")
    parameters = [*backbone.parameters(), *head.parameters()]
    assert sum(parameter.numel() for parameter in parameters) == 113_962_754
    # Also on a copy whose token types nobody has widened yet.
    for each in (backbone, untouched):
        counts = count_forward(task, each, head, None, image_size=(384, 640), text_length=40)
        assert counts.macs_total == 51_780_099_072


def test_targets_loss_and_predictions() -> None:
    task = NLVR2()
    examples = [Example(str(k), f"text {k}", (), Label(k % 2), "g") for k in range(3)]
    targets = task.collate_targets(examples)
    assert targets is not None
    assert targets.tolist() == [0, 1, 0]
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    by_hand = -(2 * logits[0].softmax(0)[0].log() + logits[0].softmax(0)[1].log()) / 3
    assert task.loss(logits, targets).item() == pytest.approx(by_hand.item())
    assert task.predict(logits, examples)[1] == {
        "id": "1",
        "group": "g",
        "text": "text 1",
        "prediction": "False",
        "label": "True",
        "score": 0.0,
    }


def test_majority_label_of_train_is_scored_on_test(root: Path) -> None:
    task = NLVR2()
    assert task.majority_score(task.load(root)) == 25  # False in train, one of four in test
    even = [Example(str(k), "", (), Label(k), "g") for k in (1, 0)]
    assert task.majority_score(Data({"train": even, "test": even[1:]}, {})) == 100


def test_submission_is_the_official_csv(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    answers = [("test1-1-0-1", "True"), ("test1-0-3-0", "False")]
    NLVR2().write_submission([{"id": name, "prediction": label} for name, label in answers], path)
    assert path.read_text() == "test1-0-3-0,False\ntest1-1-0-1,True\n"
    assert read_predictions(path) == dict(answers)


def test_limits_and_test_split_are_options(root: Path) -> None:
    write(root / "test2.json", *(entry(f"test2-{k}-0-0") for k in range(6)))
    task = build_task(parse_spec("nlvr2[limit_train=4,limit_test=3,test=test2]"))
    data = task.load(root)
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [4, 4, 3]
    assert data.provenance["splits"]["test"]["official split"] == "test2"
    assert task.config()["test"] == "test2"
    with pytest.raises(UserError, match="nlvr2: limit_val must be at least 1, not 0"):
        build_task(parse_spec("nlvr2[limit_val=0]"))
    with pytest.raises(UserError, match="test must be one of test1, test2"):
        build_task(parse_spec("nlvr2[test=dev]"))
    assert NLVR2Options() == NLVR2().options


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in entry("dev-1-0-0").items() if name != key}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (without("sentence"), r"dev\.json: line 2: missing key 'sentence'"),
        (without("identifier"), r"dev\.json: line 2: missing key 'identifier'"),
        (entry("dev-1-0-0", "Maybe"), r"dev\.json: line 2: a label is True or False, not 'Maybe'"),
        (entry("dev-1-0"), r"line 2: an identifier has four parts, .*; not 'dev-1-0'"),
        (entry("dev-0-0-0"), r"line 2: 'dev-0-0-0' appears twice"),
        ([1], r"line 2: expected an object with 'identifier', not \[1\]"),
        (entry("dev-1-0-0") | {"label": True}, r"line 2: 'label' must be a string, not true"),
    ],
)
def test_bad_entries_are_named_by_file_and_line(root: Path, bad: Any, message: str) -> None:
    write(root / "dev.json", entry("dev-0-0-0"), bad)
    with pytest.raises(UserError, match=message) as caught:
        NLVR2().load(root)
    assert "\n" not in str(caught.value)


def cut_short(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


def emptied(path: Path) -> None:
    path.write_text("\n")


def not_utf8(path: Path) -> None:
    path.write_bytes(b"\xff")


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_short, r"dev\.json: line 4, column \d+: not valid JSON"),
        (emptied, r"dev\.json: is empty"),
        (not_utf8, r"dev\.json: byte 1: is not valid UTF-8"),
        (removed, r"looked for dev\.json, dev\.json\.gz and .*, found none of them"),
    ],
)
def test_bad_files_are_named(root: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(root / "dev.json")
    with pytest.raises(UserError, match=message):
        NLVR2().load(root)


def test_subset_must_belong_to_its_split(root: Path) -> None:
    write(root / "balanced_dev.json", entry("dev-7-0-0"))
    with pytest.raises(UserError, match=r"balanced_dev\.json: 'dev-7-0-0' is not in .*dev\.json"):
        NLVR2().load(root)


def test_unlabelled_and_missing_predictions_are_not_scored() -> None:
    with pytest.raises(UserError, match="no predictions to score"):
        score([])
    with pytest.raises(UserError, match="example dev-1-0-0 has no label"):
        score([{"id": "dev-1-0-0", "score": None}])


@needs_shared_data
@pytest.mark.parametrize(("name", "examples", "groups"), [("dev", 6_982, 2_018), ("test1", 6_967, 1_995)])
def test_real_files_parse_completely(name: str, examples: int, groups: int) -> None:
    split = read_split(SHARED / "annotations_only" / "nlvr2", name)
    assert len(split.statements) == examples
    by_group: dict[str, set[str]] = {}
    for statement in split.statements:
        by_group.setdefault(consistency_group(statement.id), set()).add(statement.sentence)
    # The published number of sentences; every group is about one sentence.
    assert len(by_group) == groups
    assert all(len(sentences) == 1 for sentences in by_group.values())
    left, right = image_paths(split.statements[0])
    assert (left.name, right.name) == (left.name.replace("img1", "img0"), left.name.replace("img0", "img1"))


def test_prediction_files_may_have_any_line_ends_and_blanks(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_bytes(b"\xef\xbb\xbfdev-1-0-0,True\r\rdev-1-0-1, false \r\n\n")
    assert read_predictions(path) == {"dev-1-0-0": "True", "dev-1-0-1": "False"}
