"""LLaVA-DAS and LaVIN-DAS: DAS with the authors' adapters and searches for decoders, on LLaVA."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, cast

import torch

from harness.backbones.base import Backbone
from harness.errors import UserError
from methods.base import SearchTrainer, freeze
from methods.das_decision import DASDecision
from methods.decoder_search import LAYERS, RecipeOptions, recipe_of, search_by_recipe


def published_skip(options: RecipeOptions, backbone: Backbone) -> int:
    """The published number of layers to skip, as a share of the backbone's."""
    return max(1, recipe_of("das", options).skip * len(backbone.block_names) // LAYERS)


def adapt_decoder(
    backbone: Backbone, options: Any, generator: torch.Generator, skipped: Collection[str] | None
) -> None:
    """Freeze the backbone and give each layer its adapters; those named are skipped.

    skipped: None: every layer gets both kinds of adapters, for a search.

    Raises:
        UserError: the blocks are not LLaVA's.
    """
    # Imported only here: the list of methods should not wait for transformers.
    from harness.backbones.llava.block import LlavaBlock
    from methods.decoder_forms import insert_published

    if any(type(block) is not LlavaBlock for block in backbone.blocks):
        raise UserError(f"das: form={options.form} is for LLaVA; leave it out on {backbone.name}.")
    freeze(backbone)
    insert_published(
        "das",
        backbone,
        options.form,
        recipe_of("das", options),
        generator,
        skipped,
        bottleneck=options.bottleneck,
        skip_bottleneck=options.shortcut_bottleneck,
    )


def search_decoder(trainer: SearchTrainer, options: Any, skip: int) -> DASDecision:
    """The published search over layers."""
    backbone = trainer.backbone
    adapt_decoder(backbone, options, trainer.generator, None)
    recipe = recipe_of("das", options)
    return search_by_recipe(
        trainer, recipe, options, backbone.block_names, skip, partial(_skip_only, backbone)
    )


def _skip_only(backbone: Backbone, chosen: Sequence[int]) -> None:
    for index, block in enumerate(cast(Sequence[Any], backbone.blocks)):
        block.skipped = {"attention"} if index in chosen else set()
