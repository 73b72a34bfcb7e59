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

The options of a table such as `[methods.lora]`, `[tasks.vqa]` or `[backbones.vilt]` go to everything of that name in
`[run]`; what `[run]` says itself overrides them. `harness list` shows the options of methods.

What a setting decides:

- **protocol**: it must agree for two results to compare. Tables refuse to put cells side by side that differ in it.
- **cell**: with another value it is another cell, which may stand in the same table.
- **by what it names**: it chooses what is loaded. Protocol and cell hold what that comes to: digests of weights and
  data, resolved options, sizes.
- **–**: no result depends on it, rounding aside.

A record keeps all settings of its cell, so that `harness reproduce` and `harness evaluate` take them up again, but for
those that name something on the machine, marked ‡: these are given anew.
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
