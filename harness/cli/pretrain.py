"""`harness pretrain`: make an embedded backbone's weights again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def pretrain(
    backbone: Annotated[
        str,
        typer.Argument(
            help="The embedded backbone: vilt-mini, meter-mini, llava-mini; or meter with encoders."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder for the weights [default: pretrained/<backbone>].")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Optimiser steps of each stage; default: the recipe's.")
    ] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="meter: folder, hub id or package of a text encoder.")
    ] = None,
    image_encoder: Annotated[
        str | None, typer.Option(help="meter: folder, hub id or package of an image encoder.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="meter: one of Karpathy's files, or its folder, with the images.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="meter: width of the fusion [default: the text encoder's].")
    ] = None,
    depths: Annotated[
        int | None, typer.Option(min=1, help="meter: depths of the fusion [default: 6].")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="meter: side of the images in pixels [default: the encoder's].")
    ] = None,
    text_length: Annotated[
        int | None, typer.Option(min=3, help="meter: captions are cut to so many tokens [default: 50].")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="meter: images per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="meter: peak learning rate.")] = None,
    contrast_steps: Annotated[
        int | None, typer.Option(min=0, help="meter: of the steps, the first ones with the contrast alone.")
    ] = None,
    contrast_batch_size: Annotated[
        int | None, typer.Option(min=2, help="meter: images per step in these.")
    ] = None,
    precision: Annotated[
        Literal["32-true", "bf16-mixed"] | None, typer.Option(help="meter: floating-point precision.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="meter: seed.")] = None,
) -> None:
    """Pre-train an embedded backbone on generated scenes, or METER's fusion on captions; resumes an interrupted run.

    With meter and --steps 0 the encoders and a random fusion are only put into a folder of weights.
    """
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import Progress

    from harness.errors import UserError, did_you_mean
    from harness.pretrain.embedded import EMBEDDED
    from harness.pretrain.loop import pretrain_in_stages
    from harness.process import keep_freed_memory

    encoders = {
        "text_encoder": text_encoder,
        "image_encoder": image_encoder,
        "image_size": image_size,
        "text_length": text_length,
    }
    recipe = {
        "contrast_steps": contrast_steps,
        "batch_size": batch_size,
        "contrast_batch_size": contrast_batch_size,
        "learning_rate": learning_rate,
        "precision": precision,
        "seed": seed,
    }
    if backbone == "meter":
        from harness.backbones.base import BackboneOptions
        from harness.cli.pretrain_fusion import pretrain_meter

        options = BackboneOptions(**encoders)  # type: ignore[arg-type]
        pretrain_meter(options, width, depths, data_root, output, {"steps": steps, **recipe})
        return
    if backbone not in EMBEDDED:
        raise UserError(f"there is no recipe for '{backbone}'.{did_you_mean(backbone, [*EMBEDDED, 'meter'])}")
    of_meter = {**encoders, **recipe, "width": width, "depths": depths, "data_root": data_root}
    if given := [name for name, value in of_meter.items() if value is not None]:
        raise UserError(f"--{given[0].replace('_', '-')}: is for meter; the recipe of {backbone} is fixed.")
    if steps == 0:
        raise UserError("--steps: 0 is for meter with encoders; give at least 1.")
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
