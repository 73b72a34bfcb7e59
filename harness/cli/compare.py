"""`harness compare`: test whether two methods differ significantly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.analysis.significance import Comparison


def compare(
    methods: Annotated[
        list[str],
        typer.Argument(help="Pairs of methods, labelled as in tables: das full, or lora[r=8] full."),
    ],
    results: Annotated[Path, typer.Option("--results", "-r", help="Results folder.")] = Path("results"),
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    backbone: Annotated[list[str] | None, typer.Option(help="Only this backbone; may be repeated.")] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Metric, such as consistency or rsum; default: the task's primary metric."),
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Resamples of the bootstrap.")] = 10_000,
) -> None:
    """Test the difference between methods (first − second) on the same test examples and seeds.

    Several pairs are tested together with Holm's correction.
    """
    from harness.analysis.significance import compare as compare_pairs
    from harness.errors import UserError
    from harness.records.store import Store

    if len(methods) % 2:
        raise UserError(f"METHODS: give pairs, such as das full; '{methods[-1]}' has no partner.")
    pairs = list(zip(methods[::2], methods[1::2], strict=True))
    found = compare_pairs(
        Store(results), pairs, tasks=task or (), backbones=backbone or (), metric=metric, resamples=resamples
    )
    print_comparisons(found, resamples)


def print_comparisons(found: Sequence[Comparison], resamples: int) -> None:
    """Print one line per comparison, then the test and its sample sizes."""
    from tabulate import tabulate

    from harness.analysis.significance import TEST

    several = len(found) > 1
    rows = [
        [
            f"{each.first} − {each.second}",
            f"{each.task} on {each.backbone}",
            each.metric,
            f"{each.difference.estimate:+.2f}{'*' if each.significant else ' '}",
            f"{each.difference.low:+.2f} to {each.difference.high:+.2f}",
            _p(each.p_value, resamples),
            *([_p(each.adjusted, resamples, len(found))] if several else []),
        ]
        for each in found
    ]
    headers = ["Comparison", "Task", "Metric", "Difference", "95 % interval", "p", *(["p (Holm)"] * several)]
    align = ["left"] * 3 + ["right"] * (len(headers) - 3)
    typer.echo(
        tabulate(rows, headers, "simple", colalign=align, disable_numparse=True, preserve_whitespace=True)
    )
    correction = f"; Holm's correction over {len(found)} comparisons" if several else ""
    typer.echo(f"\nDifferences in points. Test: {TEST}, two-sided, {resamples} resamples{correction}.")
    typer.echo("* significant at the 5 % level" + (" after the correction." if several else "."))
    for each in found:
        typer.echo(
            f"{each.first} − {each.second}, {each.task}: the same {each.examples} examples in {each.clusters} "
            f"groups, seed{'s' if len(each.seeds) > 1 else ''} {', '.join(map(str, each.seeds))}"
            + ("; one seed, so the variance of training is not included." if len(each.seeds) == 1 else ".")
        )


def _p(value: float, resamples: int, comparisons: int = 1) -> str:
    """A p-value, or the smallest that the number of resamples can resolve."""
    least = 2 / (resamples + 1)
    return f"≤ {value:.2g}" if value <= least * comparisons else f"{value:.2g}"
