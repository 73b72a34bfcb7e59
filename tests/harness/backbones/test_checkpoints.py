from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ViltConfig, ViltModel

from harness.backbones.base import BackboneOptions
from harness.backbones.checkpoints import find_checkpoint, read_tensors
from harness.backbones.vilt.loading import load_vilt
from harness.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b"]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 16,
    "max_position_embeddings": 8,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny ViLT in Hugging Face's form."""
    config = ViltConfig(**SIZES)
    state = ViltModel(config).state_dict()
    save_file(
        {k: v.contiguous() for k, v in state.items() if not k.endswith("position_ids")},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vilt", **SIZES}))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return tmp_path


def load(folder: Path) -> None:
    load_vilt(BackboneOptions(weights=str(folder)))


def test_the_tiny_model_loads(folder: Path) -> None:
    load(folder)


Change = Callable[[Tensor], Tensor]


def nan(tensor: Tensor) -> Tensor:
    return tensor.index_fill(0, torch.tensor([0]), torch.nan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan, "contains NaN or infinity"),
        (lambda tensor: tensor * torch.inf, "contains NaN or infinity"),
        (lambda tensor: tensor.to(torch.int64), "holds numbers of type int64"),
        (lambda tensor: tensor > 0, "holds numbers of type bool"),
        (lambda tensor: tensor[:1], "has shape"),
    ],
)
def test_weights_that_are_no_finite_numbers_are_refused(folder: Path, change: Change, message: str) -> None:
    key = "encoder.layer.0.output.dense.bias"
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, key: change(tensors[key]).contiguous()}, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"{key}.* {message}"):
        load(folder)


def test_complex_and_sparse_tensors_are_refused(tmp_path: Path) -> None:
    for tensor in (torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse()):
        torch.save({"a": tensor}, tmp_path / "w.bin")
        with pytest.raises(UserError, match="a: is not a tensor of real numbers"):
            read_tensors(tmp_path / "w.bin")


class Code:
    def __reduce__(self) -> Any:
        return (print, ("run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a checkpoint"),
        (b"\x80\x02}q\x00.", "cannot be read as a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a git-lfs pointer"),
        (b"<!DOCTYPE html><html></html>", "is an HTML page"),
        (b"\xff" * 9, "cannot be read as a checkpoint"),
        (pickle.dumps(Code(), protocol=2), "pickled code is never run"),
        (b"PK\x03\x04" + b"x" * 50, "cannot be read as a checkpoint"),
    ],
)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "last.ckpt"])
def test_what_is_no_checkpoint_is_named_without_advice_to_run_it(
    tmp_path: Path, name: str, content: bytes, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_tensors(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert "weights_only" not in str(error.value)
    if name != "model.safetensors" or "is a" in message:
        assert message in str(error.value)
    assert "run" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "16"},
        {"hidden_size": 0},
        {"hidden_size": -16},
        {"hidden_size": 10**18},
        {"hidden_size": 60_000},
        {"hidden_size": 18},
        {"hidden_size": None},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 1.5},
        {"num_hidden_layers": True},
        {"num_attention_heads": 3},
        {"num_attention_heads": 0},
        {"image_size": [32, 32]},
        {"patch_size": 0},
        {"hidden_act": "no such function"},
        {"hidden_act": 3},
        {"layer_norm_eps": "x"},
        {"vocab_size": 2**21},
        {"modality_type_vocab_size": {}},
        {"model_type": ["vilt"]},
        {"id2label": 5},
        {"torch_dtype": "no such"},
    ],
    ids=str,
)
def test_a_configuration_of_other_values_is_refused(folder: Path, change: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "vilt", **SIZES, **change}))
    with pytest.raises(UserError):
        load(folder)


@pytest.mark.parametrize(
    "content", ["", "[]", "3", "null", "{", "[" * 100_000, '{"model_type": ' + "9" * 5000]
)
def test_a_configuration_of_another_form_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a vocabulary of BERT"),
        (b"\x00\xff\x00", "NUL byte"),
        (b"\xff\xfe", "UTF-16"),
        ("\n".join([*WORDS, "c"]).encode(), "has 7 entries, but the weights have 6 word embeddings"),
        ("\n".join(WORDS[2:]).encode(), "is missing"),
    ],
)
def test_a_vocabulary_of_other_weights_is_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"vocab\.txt: .*{message}"):
        load(folder)


def test_a_byte_order_mark_in_a_vocabulary_is_no_part_of_its_first_word(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\ufeff" + "\r\n".join(WORDS))
    load(folder)


def test_names_that_look_like_hub_ids_but_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match=r"^runs/model: no such file or folder in runs\."):
        find_checkpoint("runs/model", [])
    shutil.copytree(tmp_path / "runs", tmp_path / "runs" / "model")
    assert find_checkpoint("runs/model", []) == Path("runs/model")


@pytest.mark.parametrize(
    "source", ["a b/c", "/x/y", "x/y.ckpt", "x", "~nobody_here/x", "a\x00/b", "n" * 5000, "x/../y"]
)
def test_what_is_neither_here_nor_a_hub_id_is_named(source: str) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        find_checkpoint(source, [])
