"""A readable summary of one record."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.records.record import Compute, ComputePerExample, Failure, Latency, Record, Routes


def describe(record: Record) -> Iterator[tuple[str, str]]:
    """(name, value) pairs, the most important first."""
    cell = record.cell
    yield "cell", cell.id
    yield "status", record.status if record.error is None else f"{record.status}: {record.error}"
    yield "method", _with_options(cell.method.label, cell.method.options)
    yield "task", _with_options(f"{cell.task.name} version {cell.task.version}", cell.task.options)
    yield "data", "mini (embedded)" if record.data.benchmark == "mini" else record.data.benchmark
    yield "backbone", f"{cell.backbone.name}, digest {cell.backbone.digest[:16]}"
    yield "seed", str(cell.seed)
    for split, metrics in record.metrics.items():
        reported = " (reported)" if split == record.reported_split else ""
        yield f"{split}{reported}", ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())
    if record.majority_accuracy is not None:
        yield "majority answer", f"{record.majority_accuracy:.2f}"
    if record.parameters is not None:
        groups = vars(record.parameters.groups)
        parts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in groups.items() if count)
        yield "parameters", f"{record.parameters.updated:,} updated of {record.parameters.total:,}: {parts}"
    yield "compute", _compute(record.compute)
    if record.compute_per_example is not None:
        yield "compute per example", _per_example(record.compute_per_example)
    if record.routes is not None:
        yield "routes", _routes(record.routes)
    yield from _latency(record)
    yield from _costs(record)
    environment = record.environment
    dirty = " with changes" if environment.dirty else ""
    yield "command", environment.command
    yield "code", ", ".join(f"{part} {digest}" for part, digest in cell.code.items()) or "not recorded"
    for each in record.adoptions:
        newer = "no checkout" if each.commit is None else f"commit {each.commit}"
        share = f"{len(each.sampled)} of {each.stale} cells were run again, with the same figures"
        yield "adopted", f"{each.date.isoformat(timespec='seconds')} by newer code ({newer}): {share}"
    yield "commit", "not a checkout" if environment.commit is None else f"{environment.commit}{dirty}"
    yield "versions", ", ".join(f"{name} {value}" for name, value in environment.versions.items() if value)
    hardware = {**environment.hardware, "threads": environment.threads, "trained on": environment.device}
    yield (
        "hardware",
        ", ".join(f"{_words(name)} {_plain(value)}" for name, value in hardware.items() if value),
    )
    yield "finished", record.timestamps.finished.isoformat(timespec="seconds")
    yield "protocol", "; ".join(f"{_words(name)} {_plain(value)}" for name, value in record.protocol.items())


def _words(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: object) -> str:
    """A value from JSON in words: dictionaries as `key value` pairs, lists with commas."""
    if isinstance(value, dict):
        return ", ".join(f"{_words(str(key))} {_plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return " and ".join(map(_plain, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _with_options(name: str, options: object) -> str:
    from harness.options import format_value

    pairs = options.items() if isinstance(options, dict) else ()
    listed = ", ".join(
        _with_options(key, value) if isinstance(value, dict) else f"{key}={format_value(value)}"
        for key, value in pairs
    )
    return f"{name} ({listed})" if listed else name


def _compute(compute: Compute | Failure | None) -> str:
    from harness.records.record import Failure

    if compute is None:
        return "not measured"
    if isinstance(compute, Failure):
        return f"failed: {compute.error}"
    parts = ", ".join(f"{name} {count / 1e9:.4g} G" for name, count in compute.macs.items())
    height, width = compute.image_size
    decoding = compute.decoding
    further = (
        ""
        if decoding is None
        else f"; the next token after the prompt of {decoding.prompt_tokens} tokens "
        f"{decoding.token_macs / 1e9:.4g} GMACs; keys and values of the prompt {decoding.cache_bytes:,} bytes "
        f"({decoding.precision})"
    )
    return (
        f"{compute.macs_total / 1e9:.4g} GMACs = {compute.flops_total / 1e9:.4g} GFLOPs "
        f"at {height}×{width} pixels, {compute.text_length} tokens: {parts}{further}"
    )


def _per_example(counts: ComputePerExample) -> str:
    change = 100 * (counts.mean / counts.untouched_mean - 1)
    return (
        f"mean {counts.mean / 1e9:.4g} GMACs, 10th to 90th percentile {counts.p10 / 1e9:.4g} to "
        f"{counts.p90 / 1e9:.4g}, on {counts.n} test examples; {change:+.1f} % against the untouched backbone"
    )


def _routes(routes: Routes) -> str:
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in routes.shares.items())
    return (
        f"{routes.blocks_run:.2f} of {len(routes.shares)} blocks run on average over {routes.examples} test "
        f"examples, {routes.different} different routes; share that runs each block: {shares}; "
        "routes.json.gz has each example's"
    )


def _latency(record: Record) -> Iterator[tuple[str, str]]:
    from harness.records.record import Failure

    if isinstance(record.latency, Failure):
        yield "latency", f"failed: {record.latency.error}"
        return
    for each in record.latency:
        of = "" if each.part == "pass" else f" of the {each.part}"
        how = ", CUDA graph" if each.execution == "graph" else ""
        yield (
            f"latency{of}, batch {each.batch_size}{how}",
            f"p50 {each.p50_ms:.2f} ms, p90 {each.p90_ms:.2f} ms (n {each.n}, {each.device}, "
            f"{each.threads} threads, {_conditions(each)}{_inputs(each)}measured together: {each.group})",
        )
    if not record.latency:
        yield "latency", "not measured"


def _conditions(latency: Latency) -> str:
    """Type of the weights and other programs, as far as they are known."""
    precision = "" if latency.precision is None else f"{latency.precision} weights, "
    return precision + ("" if latency.others is None else f"other programs on {latency.others:.1f} cores, ")


def _inputs(latency: Latency) -> str:
    return "" if latency.examples is None else f"on {latency.examples} test examples in turn, "


def _costs(record: Record) -> Iterator[tuple[str, str]]:
    from harness.records.record import Failure

    memory, training, search = record.memory, record.training, record.search
    if isinstance(memory, Failure):
        yield "memory", f"failed: {memory.error}"
    elif memory is not None:
        peak = memory.peak_training_mib
        measured = "not measured" if peak is None else f"training {peak:.0f} MiB"
        yield "peak memory", f"{measured} ({memory.how})"
    if record.tuned_file_bytes is not None:
        yield "tuned file", f"{record.tuned_file_bytes / 2**20:.2f} MiB"
    if training is not None:
        yield (
            "training",
            f"{training.seconds:.0f} s, {training.examples_per_second:.1f} examples/s, epoch "
            f"{training.best_epoch} of {record.protocol['epochs']} reported, learning rate {training.learning_rate:g}, "
            f"{100 * training.data_wait_fraction:.0f} % of the time waiting for data",
        )
    if search is not None:
        warm = "; training began with what it had trained" if search.warm_start else ""
        yield "search", f"{search.seconds:.0f} s ({100 * search.share:.0f} %): {search.summary}{warm}"
