"""`harness profile`: costs of methods on a backbone, without weights or data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def profile(
    backbone: Annotated[str, typer.Option(help="Backbone, such as meter or vilt.")] = "meter",
    methods: Annotated[str, typer.Option(help="Methods, such as das[skip=2],lora[r=8], or 'all'.")] = "all",
    tasks: Annotated[str, typer.Option(help="Tasks, such as vqa,nlvr2, or 'all'.")] = "vqa",
    image_size: Annotated[
        str | None,
        typer.Option(
            help="HEIGHTxWIDTH or one side, in pixels; default: the published size, else the backbone's."
        ),
    ] = None,
    text_length: Annotated[
        int, typer.Option(min=3, help="Length of the text in tokens, special tokens included.")
    ] = 40,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency", help="Measure the latency of each method and of full tuning, with random weights."
        ),
    ] = False,
    batch_sizes: Annotated[
        str | None,
        typer.Option(help="Batch sizes of latencies, such as 1,16; default: 1 and 16, on a GPU also 64."),
    ] = None,
    output: Annotated[
        list[Path] | None,
        typer.Option("--output", "-o", help="File to write, .md or .csv; can be given twice."),
    ] = None,
) -> None:
    """Count parameters by group and multiply-accumulates by component, from shapes alone.

    A method that searches has one row for each possible cost (DAS: for each number of skipped blocks per stream).
    """
    import sys

    import torch
    from rich.console import Console

    from harness.errors import UserError
    from harness.files import require_writable, write_atomically
    from harness.measure.profile import make_setting, profile_setting
    from harness.records.environment import command_line
    from harness.registry import read_specs
    from harness.report.profile_tables import notes_of, print_profile, to_csv, to_markdown

    files = output or []
    for file in files:
        if file.suffix not in (".md", ".csv"):
            raise UserError(f"--output {file}: must end in .md or .csv.")
        require_writable(file)
    size = _read_size(image_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if latency else None
    sizes = _read_batch_sizes(batch_sizes, device is not None and device.type == "cuda")
    console, profiles = Console(), []
    every = "all" in [each.strip() for each in methods.split(",")]
    chosen = read_specs(methods, "methods")
    for task in read_specs(tasks, "tasks"):
        setting = make_setting(backbone, task, size, text_length)
        with Console(stderr=True).status("") as status:
            found = profile_setting(
                setting, chosen, latency_on=device, batch_sizes=sizes, leave_out=every, on_case=status.update
            )
        profiles.append(found)
    command = command_line(sys.argv)
    for file in files:
        text = to_csv(profiles) if file.suffix == ".csv" else to_markdown(profiles, command)
        write_atomically(file, text.encode())
    for found in profiles:
        print_profile(found, console)
    for note in notes_of(profiles):
        console.print(note, style="dim")


def _read_batch_sizes(text: str | None, on_gpu: bool) -> tuple[int, ...]:
    import re

    from harness.errors import UserError

    if text is None:
        return (1, 16, 64) if on_gpu else (1, 16)
    sizes = text.split(",")
    if not all(re.fullmatch("0*[1-9][0-9]{0,4}", size) for size in sizes):
        raise UserError(f"--batch-sizes must be numbers separated by commas, got '{text}'.")
    return tuple(map(int, sizes))


def _read_size(text: str | None) -> tuple[int, int] | None:
    import re

    from harness.errors import UserError

    if text is None:
        return None
    height, _, width = text.partition("x")
    sides = (height, width or height)
    if not all(re.fullmatch("0*[1-9][0-9]{0,3}", side) for side in sides):
        raise UserError(f"--image-size must be one side or HEIGHTxWIDTH in pixels, got '{text}'.")
    return int(sides[0]), int(sides[1])
