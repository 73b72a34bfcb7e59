"""`harness list`: names and options of methods, tasks and backbones; `harness methods`: what each method costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.console import Console

    from harness.cli.described import Option


def list_names(
    name: Annotated[
        str | None, typer.Argument(help="A method or task, such as das or vqa: show its options.")
    ] = None,
) -> None:
    """List methods, tasks and backbones; with a NAME, all options of that method or task."""
    from rich.console import Console
    from rich.text import Text

    from harness.registry import (
        ADAPTERS_LIBRARY,
        PEFT_LIBRARY,
        names,
        resolve_backbone,
        resolve_method,
        resolve_task,
        third_party_names,
    )

    console = Console(highlight=False)
    if name is not None:
        _show(name, console)
        return
    shown = [each for each in names("methods") if each not in (*ADAPTERS_LIBRARY, *PEFT_LIBRARY)]
    own = third_party_names("backbones")
    rows = {
        "methods": [(each, _about(resolve_method, each, "summary")) for each in shown],
        "tasks": [(each, _about(resolve_task, each, "title")) for each in names("tasks")],
        "backbones": [
            (each, _about(resolve_backbone, each, "") if each in own else "") for each in names("backbones")
        ],
    }
    for kind, listed in rows.items():
        console.print(Text(kind, "bold"))
        width = max(len(each) for each, _ in listed)
        for each, text in listed:
            console.print(Text(f"  {each:<{width}}  {text}".rstrip()), soft_wrap=True)
    console.print(f"from the adapters library: {', '.join(ADAPTERS_LIBRARY)}", soft_wrap=True)
    console.print(f"from the peft library: {', '.join(PEFT_LIBRARY)}", soft_wrap=True)
    console.print("\nharness list NAME shows the options of a method or task.")


def _about(resolve: Callable[[str], object], name: str, attribute: str) -> str:
    """What a method or task says of itself, or why it cannot be loaded."""
    from harness.errors import UserError

    try:
        return str(getattr(resolve(name), attribute, ""))
    except UserError as error:
        return f"broken: {error}"


def _show(asked: str, console: Console) -> None:
    """A method's or task's summary and options.

    Raises:
        UserError: no method or task has this name.
    """
    from rich.text import Text

    from harness.cli.described import Option, options_of
    from harness.errors import UserError, did_you_mean
    from harness.options import format_value
    from harness.registry import (
        ADAPTERS_LIBRARY,
        PEFT_LIBRARY,
        build_method,
        names,
        resolve_method,
        resolve_task,
    )
    from harness.specs import Spec

    known = {each.lower(): each for kind in ("tasks", "methods") for each in names(kind)}  # type: ignore[arg-type]
    name = known.get(asked.lower())
    if name is None:
        raise UserError(f"no method or task is called '{asked}'.{did_you_mean(asked.lower(), known)}")
    if name in (*ADAPTERS_LIBRARY, *PEFT_LIBRARY):
        built = build_method(Spec(name))
        title, about = f"{name}: {built.summary}", built.source
        settings = built.config().items()
        options = [Option(key, format_value(value), "", "") for key, value in settings]
        about += ". Options are the settings of the library, with its defaults."
    elif name in names("methods"):
        method = resolve_method(name)
        title, about = f"{name}: {method.summary}", method.source
        options = list(options_of(method.Options))
    else:
        task = resolve_task(name)
        title = f"{name}: {task.title}"
        recipes = [
            f"{recipe.epochs} epochs of batches of {recipe.batch_size} {where}"
            for recipe, where in ((task.recipe, "on official data"), (task.embedded_recipe, "on mini"))
        ]
        about = f"Scored by {task.primary_metric}. By default {', '.join(recipes)}."
        options = list(options_of(task.Options))
    console.print(Text(title, "bold"), soft_wrap=True)
    console.print(Text(about), soft_wrap=True)
    if not options:
        console.print("It has no options.")
        return
    _print_options(options, console)
    first = next((each for each in options if each.default not in ("none", "")), options[0])
    example = f"{name}[{first.name}={first.default}]"
    flag = "tasks" if name in names("tasks") else "methods"
    console.print(f"\nGiven as: harness run --{flag} '{example}'", markup=False, soft_wrap=True)


def _print_options(options: Iterable[Option], console: Console) -> None:
    import textwrap

    from rich.text import Text

    for each in options:
        if each.meaning:
            console.print()
        title = Text(f"  {each.name}", "bold")
        title.append(
            f" = {each.default or '(empty)'}" + (f"   ({each.allowed})" if each.allowed else ""), "not bold"
        )
        console.print(title, soft_wrap=True)
        width = max(40, min(console.width, 110))
        for line in each.meaning.splitlines():
            hanging = " " * (8 if line.startswith("- ") else 6)
            for part in textwrap.wrap(line, width, initial_indent=" " * 6, subsequent_indent=hanging):
                console.print(Text(part), soft_wrap=True)


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

    from harness.errors import UserError
    from harness.measure.profile import REFERENCE, Case, count_case, find_cases, make_setting
    from harness.registry import build_method, read_specs
    from harness.report.terminal import Shown, print_columns
    from harness.specs import canonical, parse_spec

    console = Console(highlight=False)
    setting = make_setting(backbone, parse_spec(task), None, 40)
    reference = count_case(setting, Case(canonical(REFERENCE), REFERENCE))
    loaded = setting.load("meta")
    rows: list[tuple[str, ...]] = []
    with Console(stderr=True).status("") as status:
        for spec in read_specs(methods, "methods"):
            method = build_method(spec)
            for case in find_cases(spec, loaded):
                status.update(case.label)
                try:
                    row = count_case(setting, case)
                except UserError as error:
                    rows.append((case.label, "–", "–", "–", "–", method.family, str(error)))
                    continue
                change = 100 * (row.compute.macs_total / reference.compute.macs_total - 1)
                trains = what_trains(row.trained.method, row.trained.backbone_tuned)
                size = f"{row.deployed.total - reference.deployed.total:+,}"
                updated = f"{row.trained.updated:,}"
                rows.append(
                    (case.label, trains, updated, f"{change:+.2f} %", size, method.family, method.source)
                )
    headers = ("method", "trains", "parameters", "MACs", "deployed size", "family", "source")
    words = ("method", "trains", "family", "source")
    columns = zip(headers, zip(*rows, strict=True), strict=True)
    print_columns([Shown(header, texts, left=header in words) for header, texts in columns], console)
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
