"""Distillation loss between the logits of a teacher and a student."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def logit_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher ‖ student) of the softmax over the last dimension, summed over it and averaged over the rows.

    Logits are `(N, C)`; only the student gets a gradient. With one logit per row the loss is 0. PuMer's training
    (Cao et al., ACL 2023) adds it to the task's loss with weight 1 and temperature 1, for VQA too.
    """
    return F.kl_div(
        student.log_softmax(dim=-1),
        teacher.detach().log_softmax(dim=-1),
        reduction="batchmean",
        log_target=True,
    )
