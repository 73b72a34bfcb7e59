"""`harness pretrain`: make an embedded backbone's weights again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    backbone: Annotated[str, typer.Argument(help="The embedded backbone: vilt-mini.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for the weights [default: pretrained/<backbone>].")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; default: the recipe's.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of scenes and initialisation; default: the recipe's.")
    ] = None,
) -> None:
    """Pre-train an embedded backbone on generated scenes and captions; goes on where it was stopped."""
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import Progress

    from harness.allocator import keep_freed_memory
    from harness.backbones.base import BackboneOptions
    from harness.backbones.vilt_loading import MINI_FOLDER, load_vilt_mini
    from harness.errors import UserError, did_you_mean
    from harness.pretrain import Recipe
    from harness.pretrain import pretrain as run

    if backbone != "vilt-mini":
        raise UserError(f"there is no recipe for '{backbone}'.{did_you_mean(backbone, ['vilt-mini'])}")
    recipe = Recipe()
    if steps is not None:
        recipe = replace(recipe, steps=steps)
    if seed is not None:
        recipe = replace(recipe, seed=seed)
    keep_freed_memory()
    console = Console(highlight=False)
    folder = output or Path("pretrained") / backbone
    model = load_vilt_mini(BackboneOptions(weights="random"))
    with Progress(console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task(backbone, total=recipe.steps)

        def on_step(step: int, figures: dict[str, float]) -> None:
            bars.update(bar, completed=step)
            if step % 100 == 0:
                line = ", ".join(f"{name} {value:.2f}" for name, value in figures.items())
                console.print(f"step {step}: {line}", soft_wrap=True)

        report = run(model, recipe, folder, on_step)
    for name in ("config.json", "vocab.txt"):
        (folder / name).write_bytes((MINI_FOLDER / name).read_bytes())
    console.print(report["held_out"])
    console.print(f"weights in {folder}; use them by --weights {folder}", soft_wrap=True)
