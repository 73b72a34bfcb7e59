"""`harness list`: the names of methods, tasks and backbones; `harness methods`: what each method changes and costs."""

from __future__ import annotations

from typing import Annotated

import typer


def list_names() -> None:
    """List methods (with their options), tasks and backbones."""
    from collections.abc import Callable
    from dataclasses import fields

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from harness.errors import UserError
    from harness.options import format_value
    from harness.registry import (
        ADAPTERS_LIBRARY,
        PEFT_LIBRARY,
        Kind,
        names,
        resolve_backbone,
        resolve_method,
        resolve_task,
        third_party_names,
    )

    console = Console(highlight=False)
    grid = Table("method", "what it does", "options", box=None, pad_edge=False, header_style="dim")
    for name in names("methods"):
        if name in (*ADAPTERS_LIBRARY, *PEFT_LIBRARY):
            continue
        try:
            method = resolve_method(name)
        except UserError as error:
            grid.add_row(name, Text(f"broken: {error}"), "")
            continue
        options = ", ".join(f"{field.name}={format_value(field.default)}" for field in fields(method.Options))
        grid.add_row(name, Text(f"{method.summary} ({method.source})"), Text(options))
    console.print(grid)
    console.print(f"\nfrom the adapters library: {', '.join(ADAPTERS_LIBRARY)}", soft_wrap=True)
    console.print(f"from the peft library: {', '.join(PEFT_LIBRARY)}", soft_wrap=True)
    resolve: tuple[tuple[Kind, Callable[[str], object]], ...] = (
        ("tasks", resolve_task),
        ("backbones", resolve_backbone),
    )
    for kind, load in resolve:
        console.print(f"{kind}: {', '.join(names(kind))}", soft_wrap=True)
        for name in third_party_names(kind):
            try:
                load(name)
            except UserError as error:
                console.print(f"  broken: {error}", markup=False, soft_wrap=True)


def methods(
    methods: Annotated[
        str,
        typer.Option(
            help="Methods with options, such as lora[r=8],lora+das, or 'all' for the built-in ones."
        ),
    ] = "all",
    backbone: Annotated[str, typer.Option(help="Backbone at full size.")] = "vilt",
    task: Annotated[str, typer.Option(help="Task whose input the operations are counted for.")] = "vqa",
) -> None:
    """Show every method's family, what trains, its parameters, the change of operations and of the deployed size.

    Counted at full size from shapes alone, at the published image size and 40 tokens. No weights are needed.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from harness.errors import UserError
    from harness.measure.profile import REFERENCE, Case, count_case, find_cases, make_setting
    from harness.registry import build_method, read_specs
    from harness.specs import canonical, parse_spec

    console = Console(highlight=False)
    setting = make_setting(backbone, parse_spec(task), None, 40)
    reference = count_case(setting, Case(canonical(REFERENCE), REFERENCE))
    loaded = setting.load("meta")
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for header in ("family", "method", "trains"):
        grid.add_column(header)
    for header in ("parameters", "MACs", "deployed size"):
        grid.add_column(header, justify="right", no_wrap=True)
    grid.add_column("source")
    with Console(stderr=True).status("") as status:
        for spec in read_specs(methods, "methods"):
            method = build_method(spec)
            for case in find_cases(spec, loaded):
                status.update(case.label)
                try:
                    row = count_case(setting, case)
                except UserError as error:
                    grid.add_row(
                        method.family, Text(case.label), Text(str(error)), "–", "–", "–", method.source
                    )
                    continue
                change = 100 * (row.compute.macs_total / reference.compute.macs_total - 1)
                grid.add_row(
                    method.family,
                    Text(case.label),
                    what_trains(row.trained.method, row.trained.backbone_tuned),
                    f"{row.trained.updated:,}",
                    f"{change:+.2f} %",
                    f"{row.deployed.total - reference.deployed.total:+,}",
                    Text(method.source),
                )
    console.print(grid)
    height, width = setting.image_size
    console.print(
        f"{backbone}, {task} at {height}x{width} pixels and {setting.text_length} tokens. parameters: trained by the "
        "method, without head, pooler and token types. MACs, deployed size: change against the untouched backbone.",
        style="dim",
        soft_wrap=True,
    )


def what_trains(added: int, pretrained: int) -> str:
    """What the method trains beside head, pooler and token types."""
    kinds = [name for name, count in (("added", added), ("pretrained", pretrained)) if count]
    return " and ".join(kinds) or "nothing more"
