"""A backbone with the head of a task."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from harness.backbones.base import Backbone
from tasks.base import Batch, Task


class TaskModel(nn.Module):
    """A backbone with a task's head; a batch in, logits or answers out."""

    def __init__(self, task: Task[Any], backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.backbone = backbone
        self.head = head

    def forward(self, batch: Batch, answer: bool = False) -> Tensor:
        """Logits of the task, for its loss; or what it predicts from."""
        if answer:
            return self.task.answer(self.backbone, self.head, batch)
        return self.task.forward(self.backbone, self.head, batch)
