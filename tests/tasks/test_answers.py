"""Answers of generative backbones: their tokens, loss, likelihood and text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from harness.registry import build_task
from harness.specs import Spec
from tasks.answers import IGNORED, Answers
from tasks.base import Batch, Example
from tasks.classification.task import Label
from tasks.scienceqa.task import Option
from tests.support.tiny_llava import PATCHES, prompts, tiny_llava


class Letters:
    """A vocabulary of single letters; 2 ends an answer."""

    end_ids = (2,)

    def answer_ids(self, text: str) -> list[int]:
        return [10 + ord(letter) - ord("a") for letter in text] + [2]

    def answer_text(self, ids: list[int]) -> str:
        ids = ids[: ids.index(2)] if 2 in ids else ids
        return "".join(chr(token - 10 + ord("a")) for token in ids)


def answers(*texts: str) -> Answers:
    vocabulary: Any = Letters()
    return Answers(vocabulary, texts, length=3)


def batch_of(*parts: Any, targets: torch.Tensor | None = None) -> Batch:
    return Batch(parts, targets, tuple(map(str, range(len(parts[0].input_ids)))))


def test_tokens_are_padded_to_the_longest_chosen_answer() -> None:
    known = answers("a", "bc", "defg")
    assert [known.longest(chosen) for chosen in ([1, 0], [0, 0], range(3))] == [3, 2, 5]
    assert known.tokens(torch.tensor([1, 0]), 3).tolist() == [[11, 12, 2], [10, 2, IGNORED]]


def test_loss_is_the_mean_over_tokens_and_then_over_examples() -> None:
    known = answers("a", "bc")
    logits = torch.zeros(2, 3, 60)
    logits[0, 0, 11] = 100.0  # the first of three tokens is certain, the others are uniform over 60
    expected = (2 / 3 * torch.log(torch.tensor(60.0)) + torch.log(torch.tensor(60.0))) / 2
    torch.testing.assert_close(known.loss(logits, torch.tensor([1, 0])), expected)


def test_loss_of_one_example_of_a_batch_leaves_out_its_padding() -> None:
    known = answers("a", "bc")
    logits, chosen = torch.randn(2, 3, 60, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 0])
    each = [known.loss(logits[row : row + 1], chosen[row : row + 1]) for row in (0, 1)]
    torch.testing.assert_close(torch.stack(each).mean(), known.loss(logits, chosen))
    torch.testing.assert_close(each[1], known.loss(logits[1:, :2], chosen[1:]))


def test_loss_of_an_answer_is_its_negative_likelihood() -> None:
    backbone, known = tiny_llava(), answers("a", "bc", "defg")
    batch = batch_of(prompts())
    scores = known.scores(backbone, batch)
    for index, tokens in enumerate((2, 3, 5)):
        chosen = torch.tensor([index] * 3)
        loss = known.loss(known.logits(backbone, batch, chosen, tokens), chosen)
        torch.testing.assert_close(loss, -scores[:, index].mean() / tokens)


def test_written_answers_are_filled_up_with_their_end() -> None:
    backbone, known = tiny_llava(), answers("a")
    written = known.write(backbone, batch_of(prompts()))
    assert written.shape == (3, 3)
    assert known.read(torch.tensor([[10.0, 11.0, 2.0], [2.0, 2.0, 2.0]])) == ["ab", ""]


def test_second_image_stands_behind_the_first_in_one_prompt() -> None:
    backbone, first = tiny_llava(), prompts()
    second = replace(first, pixels=first.pixels.flip(0))
    both = backbone._streamed((first, second))
    assert both.mask is not None
    assert both.mask.sum(dim=1).tolist() == [9 + 2 * PATCHES, 6 + 2 * PATCHES, 9 + 2 * PATCHES]
    one, other = (backbone.encode(part)["joint"].hidden for part in (first, second))
    for row, padding in ((0, 0), (1, 3)):
        start = padding + backbone.image_start
        end = start + PATCHES
        expected = torch.cat([one[row, :end], other[row, start:end], one[row, end:]])
        torch.testing.assert_close(both.hidden[row], expected)


def test_classes_are_answered_by_their_likelihood() -> None:
    backbone, task = tiny_llava(), build_task(Spec("nlvr2"))
    head = task.build_head(backbone, torch.Generator())
    assert not list(head.parameters())
    task.spoken = answers("true", "false")
    batch = batch_of(prompts(), prompts(), targets=torch.tensor([0, 1, 0]))
    logits = task.forward(backbone, head, batch)
    assert logits.shape == (3, 6, 60)
    assert task.loss(logits, torch.tensor([0, 1, 0])).item() > 0
    assert task.forward(backbone, head, replace(batch, targets=None)).shape == (3, 60)
    scores = task.answer(backbone, head, batch)
    assert scores.shape == (3, 2)
    examples = [Example(str(k), "", (), Label(0), "") for k in range(3)]
    predicted = [each["prediction"] for each in task.predict(scores, examples)]
    assert predicted == [task.classes[index] for index in scores.argmax(dim=1).tolist()]


def test_vqa_writes_answers_that_are_not_in_its_list() -> None:
    backbone, task = tiny_llava(), build_task(Spec("vqa"))
    task.answers = ("yes", "no")
    head = task.build_head(backbone, torch.Generator())
    task.written = answers("yes", "no")
    targets = torch.tensor([[1.0, 0.3], [0.0, 1.0], [0.6, 0.0]])
    logits = task.forward(backbone, head, batch_of(prompts(), targets=targets))
    chosen = torch.tensor([0, 1, 0])
    torch.testing.assert_close(task.loss(logits, targets), task.written.loss(logits, chosen))
    examples = [Example("1", "", (), None, "")]
    (prediction,) = task.predict(torch.tensor([[12.0, 10.0, 2.0]]), examples)
    assert prediction["answer"] == "ca"


def test_what_was_written_stands_beside_the_label_read_from_it() -> None:
    task = build_task(Spec("scienceqa"))
    task.spoken = answers("a", "b")
    examples = [Example(str(k), "", (), Option(0, (), 2), "") for k in range(3)]
    rows = torch.tensor([[10.0, 2.0], [12.0, 2.0], [10.0, 11.0]])  # a, c, ab
    found = task.predict(rows, examples)
    assert [each["written"] for each in found] == ["a", "c", "ab"]
    assert [each["prediction"] for each in found] == ["A", None, None]  # there are two options
