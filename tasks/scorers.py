"""Scores from files: how each task reads anyone's answers and the official annotations, without a model.

Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from tasks.data.files import field, read_json, read_json_lines
from tasks.nlvr import scoring as nlvr_scoring
from tasks.nlvr.files import image_ids
from tasks.nlvr.files import read_predictions as read_nlvr_predictions
from tasks.nlvr.files import read_statements as read_nlvr
from tasks.nlvr2 import scoring as nlvr2_scoring
from tasks.nlvr2.files import parse_label, read_predictions
from tasks.nlvr2.files import read_statements as read_nlvr2
from tasks.retrieval import scoring as retrieval_scoring
from tasks.retrieval.files import read_captions
from tasks.scorer import Answers, Scorer
from tasks.snli_ve import scoring as snli_ve_scoring
from tasks.snli_ve.files import check_label, read_pairs
from tasks.vqa import files as vqa_files
from tasks.vqa import scoring as vqa_scoring


def _read_vqa_truths(path: Path) -> dict[str, vqa_files.Annotation]:
    entries, _ = vqa_files._read_entries(path, "annotations")
    annotations, _ = vqa_files._read_annotations(path, entries)
    return {str(identifier): annotation for identifier, annotation in annotations.items()}


def _read_vqa_submission(path: Path) -> Answers:
    content, _ = read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{path}: a list of objects with 'question_id' and 'answer' is due")
    answers: Answers = {}
    for index, entry in enumerate(content):
        place = f"{path}: [{index}]"
        identifier = field(entry, "question_id", int, place)
        if str(identifier) in answers:
            raise UserError(f"{place}: question_id {identifier} is there twice")
        answers[str(identifier)] = field(entry, "answer", str, place)
    return answers


def _judge_vqa(identifier: str, answer: str, truth: vqa_files.Annotation) -> dict[str, Any]:
    return {
        "id": identifier,
        "answer": answer,
        "answer_type": truth.answer_type,
        "score": vqa_scoring.soft_accuracy(answer, truth.answers),
    }


def _judge_label(identifier: str, answer: str, truth: str) -> dict[str, Any]:
    return {"id": identifier, "prediction": answer, "label": truth, "score": float(answer == truth)}


def _read_nlvr2_truths(path: Path) -> dict[str, str]:
    return {statement.id: statement.label for statement in read_nlvr2(path)[0].values()}


def _read_nlvr_truths(path: Path) -> dict[str, str]:
    """By image id, which begins with the name of the split: that of the file."""
    split = path.name.partition(".")[0]
    statements = read_nlvr(path)[0].values()
    return {image: statement.label for statement in statements for image in image_ids(split, statement.id)}


def _read_snli_ve_submission(path: Path) -> Answers:
    answers: Answers = {}
    for place, entry in read_json_lines(path)[0]:
        identifier = field(entry, "pairID", str, place)
        if identifier in answers:
            raise UserError(f"{place}: pairID '{identifier}' is there twice")
        answers[identifier] = check_label(field(entry, "prediction", str, place), place)
    return answers


@dataclass(frozen=True)
class _CaptionTruth:
    """A caption's image, and all captions of that image."""

    image: str
    captions: frozenset[str]


def _read_retrieval_truths(path: Path) -> dict[str, _CaptionTruth]:
    """Of the test split."""
    truths: dict[str, _CaptionTruth] = {}
    for photograph in read_captions(path).of("test"):
        ids = [str(caption.id) for caption in photograph.captions]
        truth = _CaptionTruth(str(photograph.id), frozenset(ids))
        truths |= dict.fromkeys(ids, truth)
    return truths


def _no_retrieval_submission(path: Path) -> Answers:
    raise UserError(f"{path}: JSON lines with 'id', 'top_images' and 'top_captions' are due")


def _read_candidates(line: Any, place: str) -> dict[str, list[str]]:
    candidates: dict[str, list[str]] = {}
    for key in ("top_images", "top_captions"):
        candidates[key] = [str(each) for each in field(line, key, list, place)]
        if len(set(candidates[key])) < len(candidates[key]):
            raise UserError(f"{place}: '{key}' has a candidate twice")
    return candidates


def _judge_candidates(identifier: str, answer: dict[str, list[str]], truth: _CaptionTruth) -> dict[str, Any]:
    def first(candidates: list[str], right: frozenset[str]) -> int | None:
        return next((place for place, each in enumerate(candidates, start=1) if each in right), None)

    return {
        "id": identifier,
        "group": truth.image,
        "image_rank": first(answer["top_images"], frozenset({truth.image})),
        "text_rank": first(answer["top_captions"], truth.captions),
    }


SCORERS: Mapping[str, Scorer] = {
    "vqa": Scorer(
        _read_vqa_truths,
        _read_vqa_submission,
        lambda line, place: field(line, "answer", str, place),
        _judge_vqa,
        vqa_scoring.score,
    ),
    "nlvr2": Scorer(
        _read_nlvr2_truths,
        read_predictions,
        lambda line, place: parse_label(field(line, "prediction", str, place), place),
        _judge_label,
        nlvr2_scoring.score,
    ),
    "snli_ve": Scorer(
        lambda path: {pair.id: pair.label for pair in read_pairs(path).pairs},
        _read_snli_ve_submission,
        lambda line, place: check_label(field(line, "prediction", str, place), place),
        _judge_label,
        snli_ve_scoring.score,
    ),
    "nlvr": Scorer(
        _read_nlvr_truths,
        read_nlvr_predictions,
        lambda line, place: parse_label(field(line, "prediction", str, place), place),
        _judge_label,
        nlvr_scoring.score,
    ),
    "retrieval": Scorer(
        _read_retrieval_truths,
        _no_retrieval_submission,
        _read_candidates,
        _judge_candidates,
        retrieval_scoring.score,
    ),
}
"""By the task's name."""
