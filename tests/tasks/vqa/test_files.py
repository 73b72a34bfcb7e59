"""VQA v2's files: what is read from them, and one-line errors that name the place."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from tasks.vqa.columns import load_split
from tasks.vqa.files import (
    count_vocabulary,
    find_answer_file,
    has_annotated_split,
    image_name,
    read_split,
    read_vocabulary,
)
from tasks.vqa.scoring import normalize_answer
from tests.support.paths import SHARED, needs_shared_data

QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "v2_mscoco_train2014_annotations.json"


def question(identifier: int, image: int = 5) -> dict[str, Any]:
    return {"question_id": identifier, "image_id": image, "question": f"What is {identifier}?"}


def annotation(identifier: int, answer: str = "cat", image: int = 5) -> dict[str, Any]:
    return {
        "question_id": identifier,
        "image_id": image,
        "answer_type": "other",
        "multiple_choice_answer": answer,
        "answers": [{"answer": answer, "answer_id": k} for k in range(1, 11)],
    }


def write(root: Path, questions: Any, annotations: Any) -> None:
    (root / QUESTIONS).write_text(json.dumps({"questions": questions}))
    (root / ANNOTATIONS).write_text(json.dumps({"annotations": annotations}))


def test_reads_questions_in_order_with_their_annotations(tmp_path: Path) -> None:
    write(tmp_path, [question(2), question(1)], [annotation(1, "dog"), annotation(2, "cat")])
    split = read_split(tmp_path, "train2014")
    assert [(q.id, q.image_id, q.text) for q in split.questions] == [
        (2, 5, "What is 2?"),
        (1, 5, "What is 1?"),
    ]
    first = split.questions[0].annotation
    assert first is not None
    assert first.answers == tuple((k, "cat") for k in range(1, 11))
    assert (first.answer_type, first.majority_answer) == ("other", "cat")
    assert split.files == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in (QUESTIONS, ANNOTATIONS)
    }


def test_gzipped_files_read_like_plain_ones(tmp_path: Path) -> None:
    write(tmp_path, [question(1)], [annotation(1)])
    plain = read_split(tmp_path, "train2014")
    for name in (QUESTIONS, ANNOTATIONS):
        path = tmp_path / name
        path.with_name(f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    zipped = read_split(tmp_path, "train2014")
    assert zipped.questions == plain.questions
    assert set(zipped.files) == {f"{QUESTIONS}.gz", f"{ANNOTATIONS}.gz"}


def test_byte_order_marks_and_lone_surrogates_are_read(tmp_path: Path) -> None:
    write(tmp_path, [{**question(1), "question": "is \ud800 it?"}], [annotation(1)])
    path = tmp_path / QUESTIONS
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_split(tmp_path, "train2014").questions[0].text == "is \ufffd it?"
    assert load_split(tmp_path, "train2014").texts[0] == "is \ufffd it?"


@pytest.mark.parametrize(
    ("content", "answers"),
    [
        (b'["yes", "no"]', ("yes", "no")),
        (b'{"no": 1, "yes": 0}', ("yes", "no")),
        (b'{"0": "yes", "2": "no", "3": "2"}', ("yes", "<class 1>", "no", "2")),
    ],
)
def test_an_answer_list_may_be_gzipped_in_every_form(
    tmp_path: Path, content: bytes, answers: tuple[str, ...]
) -> None:
    path = tmp_path / "trainval_label2ans.json.gz"
    path.write_bytes(gzip.compress(content))
    assert find_answer_file(tmp_path) == path
    assert read_vocabulary(path).answers == answers


def test_split_without_annotations_reads_its_questions(tmp_path: Path) -> None:
    (tmp_path / QUESTIONS).write_text(json.dumps({"questions": [question(1)]}))
    assert not has_annotated_split(tmp_path, "train2014")
    assert read_split(tmp_path, "train2014", annotated=False).questions[0].annotation is None


def without(entry: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != key}


def nine_annotators(entry: dict[str, Any]) -> dict[str, Any]:
    return entry | {"answers": entry["answers"][:9]}


def same_annotator_twice(entry: dict[str, Any]) -> dict[str, Any]:
    return entry | {"answers": [*entry["answers"][:9], entry["answers"][0]]}


def answer_without_id(entry: dict[str, Any]) -> dict[str, Any]:
    return entry | {"answers": [*entry["answers"][:3], {"answer": "x"}]}


Q, A = question, annotation


@pytest.mark.parametrize(
    ("questions", "annotations", "message"),
    [
        ([Q(1), without(Q(2), "image_id")], [A(1)], rf"{QUESTIONS}: questions\[1\]: missing key 'image_id'"),
        ([Q(1), without(Q(2), "question")], [A(1)], rf"{QUESTIONS}: questions\[1\]: missing key 'question'"),
        ([Q(1)], [without(A(1), "answers")], rf"{ANNOTATIONS}: annotations\[0\]: missing key 'answers'"),
        ([Q(1)], [answer_without_id(A(1))], r"annotations\[0\]\.answers\[3\]: missing key 'answer_id'"),
        ([Q(1)], [nine_annotators(A(1))], r"annotations\[0\]: expected 10 answers with different answer_id"),
        (
            [Q(1)],
            [same_annotator_twice(A(1))],
            r"annotations\[0\]: expected 10 answers with different answer_id",
        ),
        (
            [Q(1) | {"question_id": "1"}],
            [A(1)],
            r"questions\[0\]: 'question_id' must be an integer, not \"1\"",
        ),
        ([Q(1) | {"question": None}], [A(1)], r"questions\[0\]: 'question' must be a string, not null"),
        ([Q(1), "x"], [A(1)], r"questions\[1\]: expected an object with 'question_id', not \"x\""),
        ([Q(1), Q(2), Q(1)], [A(1), A(2)], r"questions\[2\]: question_id 1 appears twice"),
        ([Q(1)], [A(1), A(1)], r"annotations\[1\]: question_id 1 appears twice"),
        ([Q(1), Q(2)], [A(1)], rf"questions\[1\]: question_id 2 has no annotation in .*{ANNOTATIONS}"),
        ([Q(1)], [A(1), A(3)], rf"{ANNOTATIONS}: question_id 3 has no question in .*{QUESTIONS}"),
        ([Q(1, 5)], [A(1, image=6)], r"question_id 1 belongs to image 5, but to image 6 in"),
        ([], [A(1)], rf"{QUESTIONS}: 'questions' is empty"),
        ([Q(1)], [], rf"{ANNOTATIONS}: 'annotations' is empty"),
        ({"a": 1}, [A(1)], rf"{QUESTIONS}: 'questions' must be a list"),
    ],
)
def test_bad_entries_are_named_by_file_and_place(
    tmp_path: Path, questions: Any, annotations: Any, message: str
) -> None:
    write(tmp_path, questions, annotations)
    with pytest.raises(UserError, match=message) as caught:
        read_split(tmp_path, "train2014")
    assert "\n" not in str(caught.value)


def cut_short(path: Path) -> None:
    path.write_text('{"questions": [\n  {"question_id": 1,\n')


def not_utf8(path: Path) -> None:
    path.write_bytes(b'{"questions": "\xff"}')


def a_list(path: Path) -> None:
    path.write_text("[1]")


def broken_gzip(path: Path) -> None:
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[:-20])
    path.unlink()


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_short, rf"{QUESTIONS}: line 3, column 1: not valid JSON"),
        (not_utf8, rf"{QUESTIONS}: byte 16: is not valid UTF-8"),
        (a_list, rf"{QUESTIONS}: expected an object with 'questions', not \[1\]"),
        (broken_gzip, rf"{QUESTIONS}.gz: cannot be decompressed: "),
        (removed, rf"looked for {QUESTIONS}, {QUESTIONS}.gz, found none of them"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    write(tmp_path, [question(1)], [annotation(1)])
    spoil(tmp_path / QUESTIONS)
    with pytest.raises(UserError, match=message) as caught:
        read_split(tmp_path, "train2014")
    assert "\n" not in str(caught.value)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere \(no such folder\): looked for"):
        read_split(tmp_path / "nowhere", "train2014")


def test_image_names_are_the_official_ones() -> None:
    assert image_name("val2014", 42) == "val2014/COCO_val2014_000000000042.jpg"
    assert image_name("test-dev2015", 1) == "test2015/COCO_test2015_000000000001.jpg"


def test_vocabulary_holds_normalised_majority_answers_with_nine_occurrences(tmp_path: Path) -> None:
    answers = ["The Cat"] * 5 + ["cat"] * 4 + ["two"] * 12 + ["dog"] * 8 + ["ant"] * 9
    write(
        tmp_path,
        [question(k) for k in range(len(answers))],
        [annotation(k, a) for k, a in enumerate(answers)],
    )
    vocabulary = count_vocabulary({"train2014": load_split(tmp_path, "train2014").majority_counts()})
    assert vocabulary.answers == ("2", "ant", "cat")
    assert vocabulary.provenance["count"] == 3


def test_vocabulary_without_answers_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, [question(1)], [annotation(1)])
    with pytest.raises(UserError, match="no answer occurs 9 times in train2014"):
        count_vocabulary({"train2014": load_split(tmp_path, "train2014").majority_counts()})


def test_missing_classes_of_an_index_stay_in_the_head(tmp_path: Path) -> None:
    path = tmp_path / "vqa_dict.json.gz"
    path.write_bytes(gzip.compress(b'{"3": "no", "0": "yes", "1": "2"}'))
    assert read_vocabulary(path).answers == ("yes", "2", "<class 2>", "no")


def test_answer_lists_in_both_forms_give_the_same_vocabulary(tmp_path: Path) -> None:
    listed, inverse = tmp_path / "label2ans.json", tmp_path / "ans2label.json"
    listed.write_text('["", "yes", "no"]')
    inverse.write_text('{"no": 2, "": 0, "yes": 1}')
    assert read_vocabulary(listed).answers == read_vocabulary(inverse).answers == ("", "yes", "no")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected a list of answers"),
        ('["a", 1]', "entry 1 is not a string: 1"),
        ('["a", "b", "a"]', "entries 0 and 2 are the same answer, 'a'"),
        ('{"a": 0, "b": 2}', "class indices must run from 0 to 1"),
        ('{"a": 0, "b": "1"}', "class indices must run from 0 to 1"),
        ('{"a": 0, "b": 0}', "class indices must run from 0 to 1"),
        ('"a"', "expected a list of answers"),
        ('{"0": "a", "x": "b"}', "'x' is not a class index"),
        ('{"0": "a", "01": "b"}', "'01' is not a class index"),
        ('{"0": "a", "9": "b"}', "of the classes 0 to 9 only 2 have an answer"),
        ('{"0": "a", "1": "a"}', "entries 0 and 1 are the same answer, 'a'"),
        ("[", "line 1, column 2: not valid JSON"),
    ],
)
def test_bad_answer_lists_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "answers.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"answers\.json: {message}"):
        read_vocabulary(path)


@needs_shared_data
def test_real_vqa2_files_parse_completely() -> None:
    root = SHARED / "annotations_only" / "vqa2"
    splits = {name: load_split(root, name).majority_counts() for name in ("train2014", "val2014")}
    assert [len(load_split(root, name).texts) for name in splits] == [12_000, 8_977]
    assert count_vocabulary(splits).answers[:2] == ("yes", "no")
    published = find_answer_file(root)
    assert published is not None
    answers = read_vocabulary(published).answers
    assert len(answers) == 3_129
    # The published list was made by the same normalisation, so it is left as it is.
    assert [answer for answer in answers if normalize_answer(answer) != answer] == []
    assert read_vocabulary(root / "trainval_ans2label.json").answers == answers
