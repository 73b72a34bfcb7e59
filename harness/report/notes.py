"""Notes below a table: what its numbers mean and how they may be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.analysis import stats
from harness.errors import counted
from harness.records.protocol import by_task
from harness.records.record import Compute, ComputePerExample, Failure, Record

SHOWN_FAILURES = 8


@dataclass(frozen=True)
class Note:
    """A sentence below a table. columns: keys of the columns that it is about; empty: the whole table."""

    text: str
    columns: tuple[str, ...] = ()


def notes_of(
    records: Sequence[Record], rows: Sequence[Mapping[str, Any]], replaced: int, mixed: bool
) -> tuple[Note, ...]:
    """Notes of a table.

    rows: as in the table's frame. replaced: number of older results that are left out. mixed: whether latencies
    come from several measurements.
    """
    tasks = tuple(of_task[0].cell.task.name for of_task in by_task(records).values())
    costs = ("updated", "flops", "latency", "memory", "file")
    notes = [
        *_benchmarks(records),
        *_scores(records),
        *_seeds(records, tasks),
        Note(
            "Updated: parameters that the method trains, without head, poolers and token types.", ("updated",)
        ),
        Note("Common+head: poolers, token types and head, which train with every method.", ("common",)),
        Note(
            f"† multiply-accumulates, which papers of this field call FLOPs{_input_size(records)}.",
            ("flops",),
        ),
        *_decoding(records),
        *_dynamic(records),
    ]
    if any(row["latency_busy"] for row in rows):
        text = "‡ other programs used the machine during this measurement; --measure-again repeats it."
        notes.append(Note(text, ("latency",)))
    if mixed:
        text = "Latencies come from several measurements; only those of the same one can be compared."
        notes.append(Note(text, ("latency", "latency_change")))
    if any(row["search_share_percent"] is not None for row in rows):
        unknown = any(
            row["search_share_percent"] is not None and row["search_epochs"] is None for row in rows
        )
        text = f"Epochs: of training + of the search before it{' (?: not recorded)' if unknown else ''}."
        notes.append(Note(text, ("epochs",)))
    notes += _warm_starts(records)
    notes.append(Note("Training speeds come from separate runs and cannot be compared.", ("speed",)))
    if len(tasks) > 1:
        notes.append(Note("Costs are means over the tasks.", costs))
    if replaced:
        verb = "is" if replaced == 1 else "are"
        notes.append(Note(f"{counted(replaced, 'older result')} of the same cells {verb} left out."))
    return (*notes, *_failures(records))


def _benchmarks(records: Sequence[Record]) -> Iterable[Note]:
    """What accuracies on the embedded benchmark must not be compared with."""
    mini = [of_task[0] for of_task in by_task(records).values() if of_task[0].data.benchmark == "mini"]
    if mini:
        titles = [each.cell.task.title for each in mini if "mini" not in each.cell.task.title]
        official = ", ".join(titles) or "the official data"
        names = tuple(each.cell.task.name for each in mini)
        yield Note(
            f"mini: the embedded benchmark, not {official}; not comparable with published results.", names
        )


def _scores(records: Sequence[Record]) -> Iterable[Note]:
    """Metric and split of each task, then the scores of a trivial answer."""
    groups: dict[tuple[str, str], list[str]] = {}
    trivial: dict[str, float] = {}
    for of_task in by_task(records).values():
        task = of_task[0].cell.task
        groups.setdefault((task.primary_metric, of_task[0].reported_split), []).append(task.name)
        majorities = [each.majority_accuracy for each in of_task if each.majority_accuracy is not None]
        if majorities:
            trivial[task.name] = min(majorities)
    names = tuple(name for of_group in groups.values() for name in of_group)
    parts = [
        f"{metric} on the {split} split" + (f" ({', '.join(own)})" if len(groups) > 1 else "")
        for (metric, split), own in groups.items()
    ]
    yield Note(f"Scores in percent: {', '.join(parts)}.", names)
    if trivial:
        values = [
            f"{value:.2f}" + (f" ({name})" if len(trivial) > 1 else "") for name, value in trivial.items()
        ]
        yield Note(f"Chance, or always the most frequent answer, scores {', '.join(values)}.", tuple(trivial))


def seeds_by_task(records: Sequence[Record]) -> dict[str, tuple[int, int]]:
    """The smallest and the largest number of seeds with which a method of a task has a score, by task."""
    found: dict[str, tuple[int, int]] = {}
    for of_task in by_task(records).values():
        counts = Counter(each.cell.method.label for each in of_task if each.primary is not None)
        if counts:
            found[of_task[0].cell.task.name] = min(counts.values()), max(counts.values())
    return found


def _seeds(records: Sequence[Record], tasks: tuple[str, ...]) -> Iterable[Note]:
    groups: dict[tuple[int, int], list[str]] = {}
    for task, counts in seeds_by_task(records).items():
        groups.setdefault(counts, []).append(task)
    if list(groups) == [(1, 1)]:
        yield Note("One seed, so there is no spread over seeds.", tasks)
        return
    parts = [
        (f"{least}" if least == most else f"{least} to {most}")
        + (f" ({', '.join(own)})" if len(groups) > 1 else "")
        for (least, most), own in groups.items()
    ]
    if parts:
        seeds = f"over {parts[0]} seeds" if len(parts) == 1 else f"over seeds: {', '.join(parts)}"
        yield Note(f"± sample standard deviation {seeds}.", tasks)


def _input_size(records: Sequence[Record]) -> str:
    compute = next((each.compute for each in records if isinstance(each.compute, Compute)), None)
    if compute is None:
        return ""
    height, width = compute.image_size
    return f"; {height}×{width} pixels, {compute.text_length} tokens, batch size {compute.batch_size}"


def _decoding(records: Sequence[Record]) -> Iterable[Note]:
    """What † and latency are of, on generative backbones."""
    costs = [each.compute for each in records if isinstance(each.compute, Compute)]
    lengths = sorted({cost.decoding.prompt_tokens for cost in costs if cost.decoding is not None})
    if lengths:
        tokens = "–".join(map(str, dict.fromkeys((lengths[0], lengths[-1]))))
        text = (
            f"FLOPs and latency are those of the prompt ({tokens} tokens with its images) up to the logits of the "
            "first token of the answer; Token FLOPs and Token p50 are those of the next one, and KV cache is what is "
            "kept of one prompt."
        )
        yield Note(text, ("flops", "latency", "token_flops", "token_latency", "kv_cache"))


def _warm_starts(records: Sequence[Record]) -> Iterable[Note]:
    labels = dict.fromkeys(
        each.cell.method.label for each in records if each.search is not None and each.search.warm_start
    )
    if labels:
        text = f"Training starts from the adapters and head that the search trained: {', '.join(labels)}."
        yield Note(text, ("epochs", "search_share"))


def _dynamic(records: Sequence[Record]) -> Iterable[Note]:
    """Measured cost of methods whose cost depends on the input, mean over seeds; one note per method."""
    found: dict[str, dict[str, list[ComputePerExample]]] = {}
    for record in records:
        if record.compute_per_example is not None:
            of_method = found.setdefault(record.cell.method.label, {})
            of_method.setdefault(record.cell.task.name, []).append(record.compute_per_example)
    for label, of_method in found.items():
        parts = []
        for task, counts in of_method.items():
            mean, low, high, untouched = (
                stats.mean([getattr(each, key) for each in counts])
                for key in ("mean", "p10", "p90", "untouched_mean")
            )
            parts.append(
                f"{mean / 1e9:.4g} on {task} (10th to 90th percentile {low / 1e9:.4g} to {high / 1e9:.4g}; "
                f"{100 * (mean / untouched - 1):+.1f} % against the untouched backbone)"
            )
        text = (
            f"The cost of {label} depends on the example; † is for a random one. GMACs on average over the test "
            f"examples: {', '.join(parts)}."
        )
        yield Note(text, ("flops",))


def _failures(records: Sequence[Record]) -> Iterable[Note]:
    found = []
    for record in records:
        who = f"{record.cell.method.label}, {record.cell.task.name}, seed {record.cell.seed}"
        if record.error is not None:
            found.append(f"failed: {who}: {record.error}")
        for name in ("compute", "latency", "memory"):
            part = getattr(record, name)
            if isinstance(part, Failure):
                found.append(f"failed: {who}, {name}: {part.error}")
    yield from (Note(text) for text in found[:SHOWN_FAILURES])
    if len(found) > SHOWN_FAILURES:
        yield Note(f"failed: {len(found) - SHOWN_FAILURES} more")
