"""`harness pretrain`: make an embedded backbone's weights again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    backbone: Annotated[str, typer.Argument(help="The embedded backbone: vilt-mini or meter-mini.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for the weights [default: pretrained/<backbone>].")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps of each stage; default: the recipe's.")
    ] = None,
) -> None:
    """Pre-train an embedded backbone on generated scenes and captions; resumes an interrupted run."""
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import Progress

    from harness.errors import UserError, did_you_mean
    from harness.pretrain.embedded import EMBEDDED
    from harness.pretrain.loop import pretrain_in_stages
    from harness.process import keep_freed_memory

    if backbone not in EMBEDDED:
        raise UserError(f"there is no recipe for '{backbone}'.{did_you_mean(backbone, list(EMBEDDED))}")
    chosen = EMBEDDED[backbone]
    stages = chosen.stages if steps is None else tuple(replace(stage, steps=steps) for stage in chosen.stages)
    keep_freed_memory()
    console = Console(highlight=False)
    folder = output or Path("pretrained") / backbone
    with Progress(console=console, disable=not console.is_terminal) as bars:
        tasks = [bars.add_task(f"stage {k + 1}", total=stage.steps) for k, stage in enumerate(stages)]

        def on_step(stage: int, step: int, figures: dict[str, float]) -> None:
            bars.update(tasks[stage], completed=step)
            if step % 100 == 0:
                line = ", ".join(f"{name} {value:.2f}" for name, value in figures.items())
                console.print(f"stage {stage + 1}, step {step}: {line}", soft_wrap=True)

        copied = [chosen.folder / name for name in chosen.copied]
        report = pretrain_in_stages(chosen.load, stages, folder, copied, on_step)
    console.print(report["held_out"])
    console.print(f"weights in {folder}; use them by --weights {folder}", soft_wrap=True)
