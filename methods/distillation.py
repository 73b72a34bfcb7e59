"""Distillation: what a student's logits lose against a teacher's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def logit_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher ‖ student) of the softmax over the last dimension, summed over it and averaged over the rows.

    Logits are `(N, C)`; gradient flows to the student only. As in PuMer's training (Cao et al., ACL 2023), where it
    is added to the task's loss with weight 1, at temperature 1, also for VQA. With one logit per row it is 0.
    """
    return F.kl_div(
        student.log_softmax(dim=-1),
        teacher.detach().log_softmax(dim=-1),
        reduction="batchmean",
        log_target=True,
    )
