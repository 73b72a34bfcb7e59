"""`harness list`: the names of methods, tasks and backbones."""

from __future__ import annotations


def list_names() -> None:
    """List methods (with their options), tasks and backbones."""
    from dataclasses import fields

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from harness.options import format_value
    from harness.registry import ADAPTERS_LIBRARY, PEFT_LIBRARY, names, resolve_method

    console = Console(highlight=False)
    grid = Table("method", "what it does", "options", box=None, pad_edge=False, header_style="dim")
    for name in names("methods"):
        if name in (*ADAPTERS_LIBRARY, *PEFT_LIBRARY):
            continue
        method = resolve_method(name)
        options = ", ".join(f"{field.name}={format_value(field.default)}" for field in fields(method.Options))
        grid.add_row(name, Text(f"{method.summary} ({method.source})"), Text(options))
    console.print(grid)
    console.print(f"\nfrom the adapters library: {', '.join(ADAPTERS_LIBRARY)}", soft_wrap=True)
    console.print(f"from the peft library: {', '.join(PEFT_LIBRARY)}", soft_wrap=True)
    console.print(f"tasks: {', '.join(names('tasks'))}", soft_wrap=True)
    console.print(f"backbones: {', '.join(names('backbones'))}", soft_wrap=True)
