from __future__ import annotations

import math

import pytest
import torch

from methods.distillation import logit_divergence


def test_divergence_by_hand() -> None:
    # Teacher (3/4, 1/4) and (1/2, 1/2), student (1/2, 1/2) in both rows, averaged over the rows.
    teacher = torch.tensor([[math.log(3), 0.0], [1.0, 1.0]])
    student = torch.zeros(2, 2)
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert float(logit_divergence(teacher, student)) == pytest.approx(expected, rel=1e-6)


def test_divergence_is_weighted_by_the_teacher() -> None:
    teacher, student = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, -1.0]])
    given = teacher.softmax(-1)
    expected = (given * (given.log() - student.log_softmax(-1))).sum()
    torch.testing.assert_close(logit_divergence(teacher, student), expected)
    assert not torch.isclose(logit_divergence(student, teacher), expected)


def test_divergence_of_one_logit_per_row_is_zero() -> None:
    """So there is no distillation for retrieval."""
    assert float(logit_divergence(torch.randn(4, 1), torch.randn(4, 1))) == 0


def test_only_the_student_gets_a_gradient() -> None:
    teacher, student = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    logit_divergence(teacher, student).backward()
    assert teacher.grad is None
    expected = (student.softmax(-1) - teacher.softmax(-1)) / 3
    torch.testing.assert_close(student.grad, expected.detach())
