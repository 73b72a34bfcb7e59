"""`harness check`: compare results with an accepted baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def check(
    results: Annotated[Path, typer.Argument(help="Results folder, as `harness run` writes it.")],
    baseline: Annotated[Path, typer.Option(help="Baseline file (JSON) to compare with.")],
    junit: Annotated[Path | None, typer.Option(help="JUnit XML file to write, for CI services.")] = None,
    update: Annotated[bool, typer.Option("--update", help="Accept the results as the new baseline.")] = False,
    latency_tolerance: Annotated[
        float, typer.Option(min=0, help="Share by which a latency ratio may exceed the baseline's interval.")
    ] = 0.10,
) -> None:
    """Compare results with a baseline, cell by cell; exit status 1 if something got worse or is missing.

    Parameters, FLOPs and file sizes must agree exactly. Scores are compared with the baseline's interval, latency as a
    ratio to the untouched backbone in the same measurement.
    """
    from harness.analysis.baseline import read_baseline, summarize, write_baseline
    from harness.analysis.regression import check as check_cells
    from harness.analysis.regression import describe, write_junit
    from harness.errors import UserError
    from harness.records.store import Store

    store = Store(results)
    records = store.records()
    cells = summarize(store, records)
    if not cells:
        raise UserError(f"{results}: no finished cells in this folder; create some with `harness run`.")
    failures = {
        (r.cell.backbone.name, r.cell.task.name, r.cell.method.label, r.cell.seed): r.error
        for r in records
        if r.error is not None
    }
    findings = []
    if baseline.exists() or not update:
        findings = check_cells(read_baseline(baseline), cells, failures, latency_tolerance)
        typer.echo(describe(findings))
    if junit is not None:
        write_junit(findings, junit)
    if update:
        write_baseline(baseline, cells, records)
        typer.echo(f"{baseline}: {len(cells)} cells accepted.")
        return
    if any(finding.fails for finding in findings):
        raise typer.Exit(1)
