"""Cache the encoders' output for every distinct text and image, so that each is encoded only once.

The output of a backbone's `encode` depends on the input and the encoders alone, and most methods change neither.
Its text half and its image half are cached separately, under the digest of the encoder's weights, code and settings
and of the input's bytes (token ids; processed pixels). A half that is trained, overridden or has an inserted module
is computed anew in training. In evaluation, when nothing trains, its output is cached until the evaluation ends.

Measurements bypass the cache: compute and latency are those of `encode` and `fuse`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.inputs import Inputs, Streams, sent
from harness.digests import digest_state
from harness.digests.code import code_digest, reachable
from harness.training.encoding_store import MIB, Budgets, EncodingStore
from methods.base import Inserted

MAX_BATCH = 32
"""Largest number of texts or images encoded together; bounds memory."""


HALVES = {"text": "encode_text", "image": "encode_image"}


@dataclass(frozen=True)
class Half:
    """A half of `encode` whose output is cached in `store` under `encoder`, the digest of its encoder."""

    store: EncodingStore
    encoder: str


class CachedEncoder:
    """Replaces a backbone's `encode` (see `Backbone.encoder`).

    halves: the halves ("text", "image") whose output is cached; others are computed as usual, with gradient.
    """

    def __init__(self, halves: Mapping[str, Half]) -> None:
        self.halves = dict(halves)

    def __call__(self, backbone: Backbone, inputs: Inputs) -> Streams:
        """As `backbone.encode`; text and image may have different numbers of rows."""
        return backbone.join(self._text(backbone, inputs), self._image(backbone, inputs), inputs)

    def _text(self, backbone: Backbone, inputs: Inputs) -> Tensor:
        ids = inputs.input_ids
        if "text" not in self.halves:
            return backbone.encode_text(ids, inputs.text_mask)
        numbers = inputs.ids_on_host().numpy()
        lengths = (numbers >= 0).sum(axis=1).tolist()
        keys = [_digest(row[:length].tobytes()) for row, length in zip(numbers, lengths, strict=True)]

        def compute(rows: list[int]) -> Tensor:
            return backbone.encode_text(ids[rows, : lengths[rows[0]]], None)

        # Texts of equal length are encoded together, unpadded: a text's encoding depends on the text alone.
        found = self._collect(backbone, "text", keys, lengths, compute)
        stacked = nn.utils.rnn.pad_sequence(found, batch_first=True)
        return _ready(stacked, ids.device)

    def _image(self, backbone: Backbone, inputs: Inputs) -> Tensor:
        pixels, keys = inputs.pixels, inputs.image_keys
        if "image" not in self.halves:
            return backbone.encode_image(pixels, inputs.image_sizes)
        # Without keys the images are augmented; with sizes the encoding may depend on the padding.
        if keys is None or inputs.image_sizes is not None:
            with _without_gradient(backbone.encoders()["image"]):
                return backbone.encode_image(pixels, inputs.image_sizes)

        def compute(rows: list[int]) -> Tensor:
            return backbone.encode_image(pixels[rows], None)

        named = [_digest(key) for key in keys]
        found = self._collect(backbone, "image", named, [0] * len(keys), compute)
        return _ready(torch.stack(found), pixels.device)

    def _collect(
        self,
        backbone: Backbone,
        name: str,
        keys: Sequence[str],
        groups: Sequence[int],
        compute: Callable[[list[int]], Tensor],
    ) -> list[Tensor]:
        """The encoding of every row as it is stored; those that are not in the store are computed.

        groups: rows with the same number may be computed together.
        """
        half = self.halves[name]
        modules = backbone.encoders()[name]
        arithmetic = _arithmetic(next(modules[0].parameters()).device)
        # Encodings kept in half precision are not those of a run that keeps them in full.
        encoder = f"{half.encoder}-{arithmetic}-{half.store.budgets.precision}"
        rows: dict[str, Tensor] = {}
        missing: dict[int, dict[str, int]] = {}
        for index, key in enumerate(keys):
            if key not in rows and key not in missing.get(groups[index], {}):
                kept = half.store.get(encoder, key)
                if kept is None:
                    missing.setdefault(groups[index], {})[key] = index
                else:
                    rows[key] = kept
        for group in missing.values():
            pending = list(group.items())
            for start in range(0, len(pending), MAX_BATCH):
                part = pending[start : start + MAX_BATCH]
                with _without_gradient(modules):
                    encoded = compute([index for _, index in part])
                for (key, _), row in zip(part, encoded, strict=True):
                    rows[key] = half.store.put(encoder, key, row)
        found = [rows[key] for key in keys]
        if len({row.device for row in found}) > 1:  # there was no room for some, which stayed on the GPU
            device = next(modules[0].parameters()).device
            found = [row.to(device, non_blocking=True) for row in found]
        # Stored in half precision, except those that exceed its range.
        return found if len({row.dtype for row in found}) == 1 else [row.float() for row in found]


@contextmanager
def cached_encoding(
    backbone: Backbone, store: EncodingStore | None, evaluation: bool = False, tuned: Collection[str] = ()
) -> Iterator[CachedEncoder | None]:
    """Within the block, `backbone` reads encodings from `store` where possible; yields the encoder that does so.

    Yields None if nothing can be cached: there is no store, or `encode` is not divided into halves.

    evaluation: no weight changes within the block. The output of a trained half is then cached too, but in memory
        only and until the block ends, as no other run has its weights.
    tuned: names of parameters of `backbone` that were trained and no longer have `requires_grad` set.
    """
    outer = backbone.encoder
    halves: dict[str, Half] = {}
    if store is not None and not {"encode", "join"} & set(vars(backbone)):
        for name, modules in backbone.encoders().items():
            if isinstance(outer, CachedEncoder) and name in outer.halves:
                halves[name] = outer.halves[name]
            elif is_untouched(backbone, name, tuned):
                halves[name] = Half(store, encoder_digest(backbone, name, modules))
            elif evaluation:
                memory = Budgets(memory_mib=store.budgets.memory_mib, folder=None)
                halves[name] = Half(EncodingStore(memory), "current weights")
    backbone.encoder = CachedEncoder(halves) if halves else None
    try:
        yield backbone.encoder
    finally:
        backbone.encoder = outer


def describe_cache(encoder: CachedEncoder, store: EncodingStore | None) -> dict[str, Any]:
    """The cached halves and the size of the cache so far, as the fields of `harness.records.record.EncoderCache`."""
    if store is None:
        raise ValueError("a cached encoder needs a store")
    return {
        "halves": list(encoder.halves),
        "precision": store.budgets.precision,
        "memory_mib": store.memory_bytes / MIB,
        "disk_mib": store.written_bytes / MIB,
        "notes": list(store.notes),
    }


def is_untouched(backbone: Backbone, name: str, tuned: Collection[str] = ()) -> bool:
    """True if a half of `encode` depends only on its own weights, and these stay fixed.

    False if one of its parameters trains (or has been trained, see `tuned`), if a method has inserted a module, if
    it has a hook or an overridden function, or if it has dropout.
    """
    if HALVES[name] in vars(backbone):
        return False
    own = {id(parameter) for part in backbone.encoders()[name] for parameter in part.parameters()}
    if any(id(p) in own for path, p in backbone.named_parameters() if path in tuned):
        return False
    for module in (each for part in backbone.encoders()[name] for each in part.modules()):
        hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        trains = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        drops = isinstance(module, nn.Dropout) and module.p > 0
        if hooked or trains or drops or isinstance(module, Inserted):
            return False
    return True


def encoder_digest(backbone: Backbone, name: str, modules: Sequence[nn.Module]) -> str:
    """SHA-256 (32 hex digits) of all that a half's output depends on, except its input and the arithmetic."""
    state: dict[str, Tensor] = {}
    for place, module in enumerate(modules):
        for tensors in (module.named_parameters(), module.named_buffers()):
            state |= {f"{place}.{path}": tensor for path, tensor in tensors}
    settings = {
        "half": name,
        "modules": [repr(module) for module in modules],
        "backbone": backbone.digest(),
        # The package's own __init__ offers all of the harness to notebooks, which no encoder depends on.
        "code": code_digest(reachable([type(backbone), type(backbone.processor)], ["harness"])),
        "versions": [torch.__version__, transformers.__version__],
    }
    return digest_state(state, settings)[:32]


@contextmanager
def _without_gradient(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode without gradient or inference mode: training must be able to use the tensors later."""
    training = [each for module in modules for each in module.modules() if each.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _arithmetic(device: torch.device) -> str:
    """Device type and dtype of the computation: `cpu-float32`, `cuda-bfloat16`."""
    automatic = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if automatic else torch.get_default_dtype()
    return f"{device.type}-{str(dtype).removeprefix('torch.')}"


def _ready(kept: Tensor, device: torch.device) -> Tensor:
    """Encodings as the blocks read them: on `device`, and in float32 if they were stored in float16."""
    moved = sent(kept, device) if kept.device.type == "cpu" else kept.to(device)
    return moved.float() if moved.dtype == torch.float16 else moved


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
