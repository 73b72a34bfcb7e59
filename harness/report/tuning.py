"""Notes below tables: which learning rates were chosen on validation data, and what that cost."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from harness.records.record import Record
from harness.records.store import Store


def tuning_sentence(records: Sequence[Record], store: Store) -> str:
    """What was tuned for the methods of a table, with the number and the duration of the runs; "" if nothing was."""
    shown = {(r.cell.backbone.name, r.cell.task.name, r.cell.method.label) for r in records}
    chosen = [each for each in store.tuning() if each.keys & shown]
    if not chosen:
        return ""
    tasks = {each.task for each in chosen}
    split = "validation data"
    if len(tasks) == 1 and len(chosen[0].tasks) > 1:
        split += f" of {chosen[0].task}, for all tasks,"
    rates = ", ".join(
        f"{each.method}{_of_task(each.task, tasks)} {each.scale:g} of {'/'.join(each.scores)}"
        for each in chosen
    )
    seeds = ", ".join(map(str, sorted({seed for each in chosen for seed in each.seeds})))
    runs, seconds = sum(each.runs for each in chosen), sum(each.seconds for each in chosen)
    return (
        f"Learning rates, as multiples of the methods' defaults, were chosen on {split} with seeds "
        f"{seeds}: {rates}. That took {runs} more runs and {seconds:,.0f} s of training."
    )


def _of_task(task: str, tasks: Collection[str]) -> str:
    return f" ({task})" if len(tasks) > 1 else ""
