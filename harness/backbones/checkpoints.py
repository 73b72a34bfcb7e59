"""Find checkpoint files, read them without running pickled code, and load them strictly."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_utils import PreTrainedModel

from harness.digests import digest_state
from harness.errors import UserError, one_line
from harness.files import not_the_file, read_json, require_regular


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


def renamed(name: str, patterns: Sequence[tuple[str, str]]) -> str:
    """A tensor's name by the first pattern that it matches (regular expression, replacement); else as it is."""
    for pattern, replacement in patterns:
        changed, count = re.subn(pattern, replacement, name)
        if count:
            return changed
    return name


def converted(
    config: Any,
    tensors: Mapping[str, Tensor],
    convert: Callable[[str, Tensor], Mapping[str, Tensor]],
    heads: Collection[str],
    unused: Mapping[str, str],
) -> Checkpoint:
    """A checkpoint from another package's tensors, without a vocabulary.

    convert: a name and its tensor → one or more of ours. A name that it does not know stays, and `load_strictly`
        refuses it.
    heads: first parts of the names that belong to heads. unused: why a name that matches a pattern is left out.
    """
    state: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    for key, tensor in tensors.items():
        reason = next((reason for pattern, reason in unused.items() if re.match(pattern, key)), None)
        if reason is not None:
            left_out[key] = reason
        elif key.split(".")[0] in heads:
            kept[key] = tensor
        else:
            state |= convert(key, tensor)
    return Checkpoint(config, state, kept, None, left_out)


def find_checkpoint(source: str, patterns: Sequence[str]) -> Path:
    """The file or folder named `source`; a hub id of the form owner/name is downloaded.

    patterns: files of a hub repository to download, such as `*.safetensors`.

    Raises:
        UserError: there is no such file, folder or repository.
    """
    path = Path(os.path.expanduser(source))  # noqa: PTH111 - pathlib's fails on ~nobody
    try:
        if path.exists():
            return path
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: no such file or folder ({one_line(error)}).") from None
    if not _HUB_ID.fullmatch(source) or path.suffix in _SUFFIXES:
        raise UserError(f"{source}: no such file or folder, and not a hub id of the form owner/name.")
    if path.parent.is_dir():
        raise UserError(f"{source}: no such file or folder in {path.parent}.")
    return _download(source, patterns)


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")


def _download(hub_id: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{hub_id}: no such folder here, and the hub cannot be reached or has no such model "
            f"({type(error).__name__}). Download it on another machine and pass its folder with --weights."
        ) from error


def read_settings(folder: Path, model_type: str) -> dict[str, Any]:
    """The contents of `config.json`, which must describe a model of `model_type`.

    Raises:
        UserError: the file is missing, is not JSON, or describes another model.
    """
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder}: no config.json in this folder.")
    settings = read_json(path).value
    if not isinstance(settings, dict):
        raise UserError(f"{path}: expected an object with the model's settings.")
    if settings.get("model_type") != model_type:
        raise UserError(f"{path}: model_type is {settings.get('model_type')!r}, expected '{model_type}'.")
    return settings


@contextmanager
def describing(where: str, architecture: str) -> Iterator[None]:
    """Turn what a configuration or tensors of unexpected form raise within the block into a `UserError`."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = f"key {error} is missing" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"{where}: does not describe a {architecture} model: {reason}.") from error


_LARGEST = {"num_hidden_layers": 512, "text_layers": 512, "image_layers": 512, "vocab_size": 2**22}


_SIZES = (
    *("hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings", "image_size"),
    *("patch_size", "num_channels", "text_intermediate_size", "image_intermediate_size", "image_heads"),
    *("modality_type_vocab_size", "type_vocab_size", *_LARGEST),
)


def check_sizes(config: Any, where: str) -> None:
    """Raise `UserError` if a size of a configuration is no positive integer, is absurdly large, or does not fit."""
    for name in _SIZES:
        value = getattr(config, name, 1)
        largest = _LARGEST.get(name, 2**16)
        if type(value) is not int or not 1 <= value <= largest:
            raise UserError(f"{where}: {name} must be an integer from 1 to {largest}, not {value!r:.60}.")
    epsilon, activation = getattr(config, "layer_norm_eps", 1e-6), getattr(config, "hidden_act", "gelu")
    if type(epsilon) is not float or not 0 < epsilon < 1:
        raise UserError(f"{where}: layer_norm_eps must be a number between 0 and 1, not {epsilon!r:.60}.")
    if not isinstance(activation, str) or activation not in ACT2FN:
        raise UserError(f"{where}: hidden_act: there is no activation function {activation!r:.60}.")
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"{where}: hidden_size {config.hidden_size} is not a multiple of {config.num_attention_heads} heads."
        )


def check_amount(config: Any, state: Mapping[str, Tensor], name: str) -> None:
    """Raise `UserError` if weights are far fewer than a configuration says, before a model of its size is built."""
    least = config.vocab_size * config.hidden_size + 4 * config.num_hidden_layers * config.hidden_size**2
    present = sum(tensor.numel() for tensor in state.values())
    if least > 2 * present:
        raise UserError(
            f"{name}: the configuration describes at least {least:,} parameters, the weights have {present:,}."
        )


def check_vocabulary(words: int, embeddings: int, vocabulary: Path) -> None:
    """Raise `UserError` if a vocabulary of so many words is not that of weights with so many embeddings.

    Embeddings may be padded to a round number.
    """
    if not embeddings - 256 < words <= embeddings:
        raise UserError(
            f"{vocabulary}: has {words:,} entries, but the weights have {embeddings:,} word embeddings; it is the "
            "vocabulary of other weights."
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors`, `.bin` or Lightning `.ckpt` file, without executing pickled code.

    Raises:
        UserError: it cannot be read, contains no tensors or no finite numbers, or would run code.
    """
    require_regular(path)
    try:
        with path.open("rb") as file:
            instead = not_the_file(file.read(256))
        if instead is not None:
            raise UserError(f"{path}: is {instead}.")
        loaded = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except UserError:
        raise
    except Exception as error:  # the libraries raise whatever broken content leads to
        raise UserError(f"{path}: {_why_unreadable(error)}") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path}: contains no state_dict of tensors.")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or not isinstance(name, str):
            raise UserError(f"{path}: contains no state_dict of tensors.")
        if tensor.is_complex() or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UserError(f"{path}: {name}: is not a tensor of real numbers.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise UserError(f"{path}: {name}: contains NaN or infinity; these weights are damaged.")
    return state


def _why_unreadable(error: Exception) -> str:
    """Why a checkpoint cannot be read, without the library's advice to run its code."""
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"holds objects other than tensors and plain containers ({found[1]}); pickled code is never run."
        )
    reason = "not torch's format" if "weights_only" in str(error) else one_line(error)
    return f"cannot be read as a checkpoint ({reason}). If its download or copy was incomplete, repeat it."


def digest_model(model: PreTrainedModel) -> str:
    """SHA-256 of a model's weights and configuration."""
    settings = model.config.to_diff_dict()
    settings.pop("transformers_version", None)  # says who wrote it, not what it computes
    return digest_state(model.state_dict(), settings)


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], name: str, architecture: str) -> None:
    """Load `state` as float32. It must contain every parameter of `model` and nothing else.

    name, architecture: of the backbone, for messages.

    Raises:
        UserError: keys are missing or unknown, or a shape or a kind of number differs.
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
        if not tensor.is_floating_point() and expected[key].is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{name}: {key} holds numbers of type {kind}, expected floating-point numbers.")
    model.load_state_dict({key: tensor.to(expected[key].dtype) for key, tensor in state.items()})


def _first(keys: list[str]) -> str:
    return f" (first: {keys[0]})" if keys else ""
