"""Methods on small backbones whose weights, gains and biases are all random, and streams to run them on."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViltConfig

from harness.backbones.base import Backbone
from harness.backbones.inputs import Stream, Streams
from harness.backbones.vilt.model import ViltBackbone
from methods.adapter import SequentialAdapter, SequentialAdapterOptions
from methods.adapters_library import AdaptersMethod
from methods.base import Method
from methods.bitfit import BitFit
from methods.classifier import Classifier
from methods.das import DAS, DASOptions
from methods.full import Full
from methods.lora import LoRA, LoRAOptions
from methods.parallel import ParallelAdapter, ParallelAdapterOptions
from methods.prompts import DeepPrompt, PromptOptions, ShallowPrompt
from tests.support.measured_models import build

ALL_MAPS = ("query", "key", "value", "output", "up", "down")
TOKENS = {"joint": 9, "text": 5, "image": 7}
"""Length of each stream."""

METHODS: dict[str, Callable[[], Method[Any]]] = {
    "full": Full,
    "classifier": Classifier,
    "bitfit": BitFit,
    "lora": LoRA,
    "lora everywhere": lambda: LoRA(LoRAOptions(r=3, alpha=6.0, targets=ALL_MAPS, dropout=0.5)),
    "adapter": lambda: SequentialAdapter(SequentialAdapterOptions(bottleneck=5)),
    "adapter, gelu": lambda: SequentialAdapter(SequentialAdapterOptions(bottleneck=1, activation="gelu")),
    "parallel": lambda: ParallelAdapter(ParallelAdapterOptions(bottleneck=5)),
    "parallel, learned scale": lambda: ParallelAdapter(ParallelAdapterOptions(learn_scale=True, scale=0.5)),
    "parallel without norm": lambda: ParallelAdapter(ParallelAdapterOptions(layer_norm=False)),
    "parallel, gelu": lambda: ParallelAdapter(ParallelAdapterOptions(bottleneck=1, activation="gelu")),
    "shallow_prompt": lambda: ShallowPrompt(PromptOptions(tokens=3)),
    "deep_prompt": lambda: DeepPrompt(PromptOptions(tokens=3)),
    "adapters:lora": lambda: AdaptersMethod("lora"),
    "ia3": lambda: AdaptersMethod("ia3"),
    "dora": lambda: AdaptersMethod("dora"),
    "seq_bn": lambda: AdaptersMethod("seq_bn", {"reduction_factor": 8}),
    "par_bn": lambda: AdaptersMethod("par_bn"),
}


def das(backbone: Backbone, **options: Any) -> DAS:
    """DAS with a block of each stream skipped."""
    names = {name.split(".")[0]: name for name in backbone.block_names}
    return DAS(DASOptions(blocks=tuple(names.values()), **options))


def tiny_vilt() -> ViltBackbone:
    """Three blocks of width 32."""
    config = ViltConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=16,
        max_position_embeddings=12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return build(config)


@torch.no_grad()
def randomize(backbone: Backbone) -> None:
    """Draw every matrix, gain, offset and bias of the fusion stage at random."""
    generator = torch.Generator().manual_seed(7)
    stage = [backbone.blocks, *([] if backbone.prompt is None else [backbone.prompt])]
    for parameter in (parameter for module in stage for parameter in module.parameters()):
        noise = torch.empty_like(parameter).normal_(generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise * 0.7 / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(0.2 * noise)


def adapted(backbone: Backbone, method: Method[Any]) -> Backbone:
    """The adapted backbone with random weights, as after training."""
    method.adapt(backbone, torch.Generator().manual_seed(0))
    randomize(backbone)
    return backbone.eval()


def streams_of(backbone: Backbone, batch: int, padded: str | None = None) -> Streams:
    """Random streams; `padded`: in which modality tokens of all rows but the first are padding."""
    generator = torch.Generator().manual_seed(5)
    streams = {}
    for name in backbone.stream_names:
        length = TOKENS[name]
        hidden = torch.randn(batch, length, backbone.width, generator=generator) * 2 + 0.5
        mask = None
        if padded is not None and name in ("joint", padded):
            mask = torch.ones(batch, length, dtype=torch.bool)
            mask[1:, 3 : 5 if padded == "text" else None] = False
            mask[0, -1] = False
        streams[name] = Stream(
            hidden, mask, {"text": 0, "image": 1}.get(name), 5 if name == "joint" else None
        )
    return streams


def tokens_after(backbone: Backbone, streams: Streams, queries: int | None = None) -> dict[str, Tensor]:
    """Hidden states of every stream after the last block."""
    with torch.no_grad(), _called(backbone):
        after = backbone.run_blocks(streams, queries)  # type: ignore[operator]
    return {name: tokens.hidden for name, tokens in after.items()}


def _called(backbone: Backbone) -> AbstractContextManager[object]:
    """The context that the adapters library needs, if it has changed the backbone."""
    if "fuse" not in vars(backbone):
        return nullcontext()
    context: Any = importlib.import_module("adapters.context").ForwardContext
    return context(backbone.model)  # type: ignore[no-any-return]


def kept_blocks(backbone: Backbone) -> Iterator[nn.Module]:
    """The blocks that are not skipped, without their wrappers."""
    for block in backbone.blocks:
        inner = getattr(block, "block", block)
        if not hasattr(inner, "shortcut"):
            yield inner
