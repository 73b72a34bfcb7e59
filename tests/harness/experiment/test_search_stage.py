from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.config.sources import make_settings
from harness.experiment.search_stage import SEARCHED, begin_warm
from harness.registry import build_method
from harness.specs import parse_spec
from harness.training.checkpoint import DamagedCheckpointError, save_checkpoint
from harness.training.fabric import make_fabric
from harness.training.model import TaskModel
from tests.support.small_vilt import mini


@pytest.mark.parametrize(
    ("content", "reason"), [({}, "it holds no weights"), ({"other": torch.ones(1)}, "names differ")]
)
def test_searched_weights_that_are_empty_or_of_another_model_are_damaged(
    tmp_path: Path, content: dict[str, Any], reason: str
) -> None:
    task: Any = None
    model = TaskModel(task, mini(), nn.Linear(1, 1))
    fabric = make_fabric(make_settings(methods="das", tasks="vqa", accelerator="cpu"))
    save_checkpoint(tmp_path / SEARCHED, content)
    with pytest.raises(DamagedCheckpointError, match=reason):
        begin_warm(build_method(parse_spec("das")), model, fabric, tmp_path)
