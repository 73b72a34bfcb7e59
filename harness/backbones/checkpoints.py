"""Find checkpoint files, read them without running pickled code, and load them strictly."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.errors import UserError


@dataclass(frozen=True)
class Checkpoint:
    """Encoder weights under this package's names, the configuration, and the rest of the file.

    heads: tensors of the original's heads, under the original's names.
    vocabulary: file or folder of the tokenizer's vocabulary; None if the weights come without one.
    unused: names of tensors that the model does not use, with the reason.
    """

    config: Any
    state: dict[str, Tensor]
    heads: dict[str, Tensor]
    vocabulary: Path | None
    unused: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def fixed_generator() -> Iterator[None]:
    """Within the block, random weights are the same every time. The global generator is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def find_checkpoint(source: str, patterns: Sequence[str]) -> Path:
    """The file or folder named `source`; a hub id of the form owner/name is downloaded.

    patterns: files of a hub repository to download, such as `*.safetensors`.

    Raises:
        UserError: there is no such file, folder or repository.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if path.suffix or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"{source}: no such file or folder, and not a hub id of the form owner/name.")
    return _download(source, patterns)


def _download(hub_id: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{hub_id}: the hub cannot be reached or has no such model ({type(error).__name__}). Download it "
            "on another machine and pass its folder with --weights."
        ) from error


def read_settings(folder: Path, model_type: str) -> dict[str, Any]:
    """The contents of `config.json`, which must describe a model of `model_type`.

    Raises:
        UserError: the file is missing, is not JSON, or describes another model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json in this folder.")
    try:
        settings: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: {error.msg}.") from error
    if settings.get("model_type") != model_type:
        raise UserError(f"{path}: model_type is {settings.get('model_type')!r}, expected '{model_type}'.")
    return settings


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors`, `.bin` or Lightning `.ckpt` file, without executing pickled code.

    Raises:
        UserError: it cannot be read, contains no tensors, or would run code.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds objects other than tensors and plain containers; pickled code is never run "
            f"({str(error).splitlines()[0]})."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as a checkpoint ({str(error).splitlines()[0]}). If its download "
            "or copy was incomplete, repeat it."
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: contains no state_dict of tensors.")
    return state


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], name: str, architecture: str) -> None:
    """Load `state` as float32. It must contain every parameter of `model` and nothing else.

    name, architecture: those of the backbone, for messages.

    Raises:
        UserError: keys are missing or unknown, or a shape differs.
    """
    expected = model.state_dict()
    missing = sorted(set(expected) - set(state))
    unknown = sorted(set(state) - set(expected))
    if missing or unknown:
        raise UserError(
            f"{name}: the weights do not fit: {len(missing)} keys missing{_first(missing)}, "
            f"{len(unknown)} unknown{_first(unknown)}. Is it a {architecture} checkpoint?"
        )
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            raise UserError(
                f"{name}: {key} has shape {tuple(tensor.shape)}, expected {tuple(expected[key].shape)}."
            )
    model.load_state_dict({key: tensor.to(torch.float32) for key, tensor in state.items()})


def _first(keys: list[str]) -> str:
    return f" (first: {keys[0]})" if keys else ""
