"""Damaged weights and configurations end in one line, and run no code."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from harness.backbones.checkpoints import check_sizes, describing, read_settings, read_tensors
from harness.backbones.meter.config import MeterConfig
from harness.training.checkpoint import DamagedCheckpointError, load_checkpoint, save_checkpoint
from tests.support.fuzzing import at_most_a_user_error, cases, changed_json, damaged

TENSORS = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(3, dtype=torch.bfloat16)}


def as_torch(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


FORMS = {
    "safetensors": save(TENSORS),
    "bin": as_torch(TENSORS),
    "ckpt": as_torch({"state_dict": TENSORS, "epoch": 3}),
}


@pytest.mark.parametrize("form", FORMS)
@cases(80)
@given(data=st.data())
def test_damaged_weights(tmp_path: Path, form: str, data: st.DataObject) -> None:
    path = tmp_path / f"weights.{form}"
    path.write_bytes(data.draw(damaged(FORMS[form]) | st.binary(max_size=30)))
    with at_most_a_user_error():
        read_tensors(path)


@cases(80)
@given(data=st.data())
def test_damaged_training_states(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "state.pt"
    save_checkpoint(path, {"tuned": TENSORS, "epoch": 3})
    sound = path.read_bytes()
    content = data.draw(damaged(sound))
    path.write_bytes(content)
    try:
        assert load_checkpoint(path)["epoch"] == 3
    except DamagedCheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert content != sound


CONFIG = {
    "model_type": "meter",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "layer_norm_eps": 1e-12,
    "vocab_size": 50,
}


@cases(150)
@given(content=changed_json(CONFIG))
def test_configurations(tmp_path: Path, content: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with at_most_a_user_error():
        with describing("config.json", "METER"):
            config = MeterConfig.from_dict(read_settings(tmp_path, "meter"))
        check_sizes(config, "config.json")
