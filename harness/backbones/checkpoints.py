"""Checkpoint files of any backbone: found, read without running pickled code, and loaded strictly."""

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
    """Encoder weights by our modules' names, the configuration, and what else the file held.

    heads: tensors of the original's heads, by its names. unused: tensors that the model has no use for, with
    the reason.
    """

    config: Any
    state: dict[str, Tensor]
    heads: dict[str, Tensor]
    vocabulary: Path | None
    unused: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def fixed_generator() -> Iterator[None]:
    """Random weights that are the same every time, without touching the caller's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def find_checkpoint(source: str, patterns: Sequence[str]) -> Path:
    """The file or folder that `source` names; a hub id of the form owner/name is downloaded.

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
            "elsewhere and name its folder with --weights."
        ) from error


def read_settings(folder: Path, model_type: str) -> dict[str, Any]:
    """The contents of `config.json`, which has to be of a model of `model_type`.

    Raises:
        UserError: there is none, it is no JSON, or of another model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json there.")
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
        UserError: it cannot be read, holds no tensors, or wants to run code.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds more than tensors and plain containers, and running pickled code is refused "
            f"({str(error).splitlines()[0]})."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as a checkpoint ({str(error).splitlines()[0]}). If it was cut short while it "
            "was downloaded or copied, fetch it again."
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: no state_dict of tensors in it.")
    return state


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], name: str, architecture: str) -> None:
    """Load `state` as float32: every parameter of `model` from it, and nothing left over.

    name, architecture: of the backbone, for the messages.

    Raises:
        UserError: keys are missing or unknown, or a shape differs.
    """
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(state))
    unknown = sorted(set(state) - set(wanted))
    if missing or unknown:
        raise UserError(
            f"{name}: the weights do not fit: {len(missing)} keys missing{_first(missing)}, "
            f"{len(unknown)} unknown{_first(unknown)}. Is it a {architecture} checkpoint?"
        )
    for key, tensor in state.items():
        if tensor.shape != wanted[key].shape:
            raise UserError(
                f"{name}: {key} has shape {tuple(tensor.shape)}, expected {tuple(wanted[key].shape)}."
            )
    model.load_state_dict({key: tensor.to(torch.float32) for key, tensor in state.items()})


def _first(keys: list[str]) -> str:
    return f" (first: {keys[0]})" if keys else ""
