"""The adapters of each layer in LLaVA-DAS, LaVIN-DAS, LLaVA-EAS and LaVIN-EAS."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from harness.backbones.base import Backbone
from methods.decoder_adapters import ExpertAdapter, SequentialBottleneck
from methods.decoder_blocks import AdaptedLlavaBlock
from methods.decoder_search import Recipe, scaled


def insert_published(
    method: str,
    backbone: Backbone,
    form: str,
    recipe: Recipe,
    generator: torch.Generator,
    skipped: Collection[str] | None,
    *,
    name_of: Callable[[str], str] = str,
    **options: Any,
) -> None:
    """Give every layer its adapters (see `published_block`, also for `options`).

    skipped: what is skipped, by the name that `name_of` makes of a block's; None: all layers get the adapters of both
        cases, for a search.
    """
    blocks = backbone.blocks
    for index, block in enumerate(blocks):
        gone = name_of(str(block.name)) in (skipped or ())
        blocks[index] = published_block(
            method,
            form,
            block,
            recipe,
            generator,
            width=backbone.width,
            keep=not gone,
            skip=gone or skipped is None,
            **options,
        )


def published_block(
    method: str,
    form: str,
    block: Any,
    recipe: Recipe,
    generator: torch.Generator,
    *,
    width: int,
    keep: bool,
    skip: bool,
    dropout: float = 0.1,
    bottleneck: int | None = None,
    skip_bottleneck: int | None = None,
) -> nn.Module:
    """A layer of LLaVA-DAS, LaVIN-DAS, LLaVA-EAS or LaVIN-EAS; `keep`, `skip`: with the adapters of a layer that is
    kept or skipped, of both for a search.
    """
    small = bottleneck or scaled(recipe.bottleneck, width)
    large = skip_bottleneck or scaled(recipe.skip_bottleneck, width)
    kept: dict[str, nn.Module] = {}
    skips: dict[str, nn.Module] = {}
    sequential = (method, form) == ("das", "llava")
    if keep:
        if sequential:
            kept = {each: SequentialBottleneck(width, small, generator) for each in ("attention", "mlp")}
        else:
            bias = (method, form) != ("eas", "llava")
            kept = {"attention": ExpertAdapter(width, small, dropout, generator, router_bias=bias)}
    if skip and sequential:
        skips = {"attention": SequentialBottleneck(width, large, generator)}
    elif skip:
        skips = {
            "attention": ExpertAdapter(
                width,
                large,
                dropout,
                generator,
                context=method == "eas",
                residual=method == "eas",
                xavier_up=(method, form) == ("eas", "llava"),
            )
        }
    unit: Any = "layer" if method == "das" else "attention"
    return AdaptedLlavaBlock(block, kept, skips, unit, recipe.summary)
