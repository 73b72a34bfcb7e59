"""`harness pretrain meter`: assemble METER from pretrained encoders and pre-train its fusion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.backbones.base import BackboneOptions


def pretrain_meter(
    options: BackboneOptions,
    width: int | None,
    depths: int | None,
    data_root: Path | None,
    output: Path | None,
    recipe: Mapping[str, Any],
) -> None:
    """Pre-train, with progress; with no steps only assemble. recipe: fields of `FusionRecipe`, None for its default."""
    from rich.console import Console
    from rich.progress import Progress

    from harness.backbones.meter.assembling import assemble_encoders, save_assembled
    from harness.errors import UserError
    from harness.pretrain.fusion import FusionRecipe, pretrain_fusion
    from harness.process import keep_freed_memory

    backbone = assemble_encoders(options, width, depths)
    if backbone is None:
        raise UserError("meter: pass the encoders with --text-encoder and --image-encoder.")
    folder = output or Path("pretrained") / "meter"
    chosen = FusionRecipe(**{key: value for key, value in recipe.items() if value is not None})
    console = Console(highlight=False)
    if chosen.steps == 0:
        save_assembled(backbone, folder, {})
    else:
        if data_root is None:
            raise UserError("meter: pass a Karpathy file, or its folder, with --data-root.")
        if chosen.contrast_steps >= chosen.steps:
            raise UserError(
                f"--contrast-steps: {chosen.contrast_steps} of {chosen.steps} steps (--steps) "
                "leave none for the fusion."
            )
        keep_freed_memory()
        with Progress(console=console, disable=not console.is_terminal) as bars:
            images = bars.add_task("images", total=None)
            steps = bars.add_task("steps", total=chosen.steps)

            def on_step(step: int, figures: dict[str, float]) -> None:
                bars.update(steps, completed=step)
                if step % 50 == 0:
                    line = ", ".join(f"{name} {value:.2f}" for name, value in figures.items())
                    console.print(f"step {step}: {line}", soft_wrap=True)

            report = pretrain_fusion(
                backbone,
                data_root,
                chosen,
                folder,
                on_step,
                lambda done, total: bars.update(images, completed=done, total=total),
            )
        console.print(report["held_out"])
    console.print(
        f"weights in {folder}; use them by --backbone meter --weights {folder} --recipe own", soft_wrap=True
    )
