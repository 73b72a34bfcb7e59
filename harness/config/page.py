"""The page `docs/settings.md`, written from the declaration: `python -m harness.config > docs/settings.md`."""

from __future__ import annotations

from harness.config.declared import SETTINGS, Declared
from harness.config.types import Decides

INTRODUCTION = """\
# Settings

<!-- Written by `python -m harness.config > docs/settings.md`; change harness/config/__init__.py instead. -->

Every setting of a run. Each can be given as an option of `harness run` (`--batch-size 32`), as a key of an experiment
file's `[run]` table (`batch_size = 32`), and as a keyword of `harness.run` in Python (`batch_size=32`). Options and
keywords override the file. A value that does not fit is refused before anything runs. `~` in a path is the home folder.

    # experiment.toml
    [run]
    methods = ["full", "das[skip=4]", "lora"]
    tasks = ["vqa"]
    seeds = [0, 1, 2]
    epochs = 5

    [methods.lora]
    r = 8

The options of a table such as `[methods.lora]`, `[tasks.vqa]` or `[backbones.vilt]` apply to every entry of that name
in `[run]`; options in `[run]` override them. `harness list` shows the options of methods.

What a setting decides:

- **protocol**: results are comparable only if it agrees. Cells that differ in it are not put into the same table.
- **cell**: another value gives another cell, which may be in the same table.
- **by what it names**: it chooses what is loaded. Protocol and cell contain digests of the loaded weights and data,
  resolved options, and sizes instead.
- **–**: no result depends on it, apart from rounding.

A record keeps all settings of its cell, and `harness reproduce` and `harness evaluate` use them again. Settings that
name something on the machine, marked ‡, are not kept and must be given again.
"""


def render_page() -> str:
    """All settings by group, as Markdown."""
    lines = [INTRODUCTION]
    title = ""
    for declared in SETTINGS.values():
        if declared.title != title:
            title = declared.title
            lines.append(f"\n## {title}\n\n")
            lines.append("| Setting | Value | Default | What it is | Decides |\n|---|---|---|---|---|\n")
        lines.append(_row(declared))
    return "".join(lines)


def _row(declared: Declared) -> str:
    about = declared.about
    name = f"`{declared.key}`{' ‡' if about.local else ''}"
    default = "must be given" if declared.required else declared.default
    decides = "–" if about.decides is Decides.NOTHING else about.decides.value
    cells = (name, declared.expected, default, declared.description, decides)
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n"
