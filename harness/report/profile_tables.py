"""Profiles as tables: on a terminal, as Markdown, and as one flat CSV of exact numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from tabulate import tabulate

from harness.measure.decoding import Decoding
from harness.measure.profile import LatencyPair, Profile, Row
from harness.report.columns import BUSY
from harness.report.terminal import Shown, print_columns

if TYPE_CHECKING:
    from rich.console import Console


NOTES = (
    "Parameters: *updated* is what papers report for a method (its own parameters and those of the backbone that it "
    "tunes). *common* (poolers, token types) and *head* train with every method. Weights that no forward pass reads "
    "(RoBERTa's pooler, CLIP's text encoder) are neither built nor counted in the tables.",
    "MACs: multiply-accumulates of matrix products, convolutions and attention of the finalised model (LoRA merged), "
    "batch size 1, no padding. Papers of this field report them as FLOPs. *With LayerNorm*: 5 more for each element "
    "that a LayerNorm normalises, the convention behind DAS's −11.97 % on METER.",
)


BUSY_NOTE = (
    f"{BUSY}: something else used the machine meanwhile (the p90 of the times is far above their median, or other "
    "programs needed its cores); measure again."
)


@dataclass(frozen=True)
class Grid:
    """One table: title, headers and rows of text, with the method in the first column."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def title_of(profile: Profile) -> str:
    """Backbone, task and input size in words."""
    setting = profile.setting
    height, width = setting.image_size
    images = setting.task.images_per_example
    pictures = f"{images} images of" if images > 1 else "image"
    return (
        f"{setting.backbone}, {setting.task.title}: {pictures} {height}×{width} pixels, "
        f"text {setting.text_length} tokens"
    )


def grids(profile: Profile) -> Iterator[Grid]:
    """Parameters by group, MACs by component, changes against full tuning, and latency if it was measured.

    Generative backbones also have a table of what each further token costs.
    """
    title = title_of(profile)
    yield Grid(
        f"{title} — parameters",
        ("method", "updated", "its own", "common", "head", "frozen", "total", "deployed"),
        tuple(_parameters(row) for row in profile.rows),
    )
    components = tuple(profile.rows[0].compute.macs)
    writes = profile.rows[0].compute.decoding is not None
    of = " of the prompt" if writes else ""
    yield Grid(
        f"{title} — MACs{of} by component (G)",
        ("method", *components, "total"),
        tuple(
            (row.case.label, *(_giga(row.compute.macs[name]) for name in (*components,)), _giga(_macs(row)))
            for row in profile.rows
        ),
    )
    yield Grid(
        f"{title} — change against full tuning",
        ("method", "MACs (G)", "change (G)", "change (%)", "with LayerNorm (G)", "change (G)", "change (%)"),
        tuple(_changes(row, profile.rows[0]) for row in profile.rows),
    )
    if writes:
        yield Grid(
            f"{title} — each further token, and what is kept of the prompt",
            (
                "method",
                "prompt (tokens)",
                "prompt MACs (G)",
                "change (%)",
                "token MACs (G)",
                "change (%)",
                "KV cache (MiB)",
                "change (%)",
            ),
            tuple(_decoding(row, profile.rows[0]) for row in profile.rows),
        )
    if profile.latency:
        yield Grid(
            f"{title} — latency, each measured interleaved with full tuning",
            (
                "method",
                *(("of",) if writes else ()),
                "batch",
                "run as",
                "p50 (ms)",
                "full tuning (ms)",
                "change (%)",
                "n",
                "device",
                "threads",
            ),
            tuple(_latencies(profile)),
        )


def _macs(row: Row) -> int:
    return row.compute.macs_total


def _giga(macs: int) -> str:
    return f"{macs / 1e9:,.3f}"


def _parameters(row: Row) -> tuple[str, ...]:
    counts = row.trained
    numbers = (
        counts.updated,
        counts.method + counts.method_frozen,
        counts.common,
        counts.head,
        counts.backbone_frozen,
        counts.total,
        row.deployed.total,
    )
    return (row.case.label, *(f"{number:,}" for number in numbers))


def _changes(row: Row, reference: Row) -> tuple[str, ...]:
    cells = [row.case.label]
    for count, base in (
        (_macs(row), _macs(reference)),
        (row.compute.with_layer_norm_total, reference.compute.with_layer_norm_total),
    ):
        difference = count - base
        cells += [_giga(count), f"{difference / 1e9:+,.3f}", f"{100 * difference / base:+.3f}"]
    return tuple(cells)


def _decoding(row: Row, reference: Row) -> tuple[str, ...]:
    mine, base = row.compute.decoding, reference.compute.decoding
    assert mine is not None
    assert base is not None
    figures: tuple[tuple[str, int, int], ...] = (
        (_giga(_macs(row)), _macs(row), _macs(reference)),
        (f"{mine.token_macs / 1e9:,.5f}", mine.token_macs, base.token_macs),
        (f"{mine.cache_bytes / 2**20:,.3f}", mine.cache_bytes, base.cache_bytes),
    )
    cells = [part for text, own, full in figures for part in (text, f"{100 * (own - full) / full:+.3f}")]
    return (row.case.label, str(mine.prompt_tokens), *cells)


def _latencies(profile: Profile) -> Iterator[tuple[str, ...]]:
    for label, pairs in profile.latency.items():
        for pair in pairs:
            change = 100 * (pair.case.p50 / pair.reference.p50 - 1)
            mark = BUSY if _busy(pair) else ""
            times = (
                f"{pair.case.p50:.3g}",
                f"{pair.reference.p50:.3g}",
                f"{change:+.1f}{mark}",
                str(pair.case.n),
            )
            how = "CUDA graph" if pair.execution == "graph" else "eager"
            part = () if pair.part == "pass" else (pair.part,)
            yield (label, *part, str(pair.batch_size), how, *times, pair.case.device, str(pair.case.threads))


def print_profile(profile: Profile, console: Console) -> None:
    """Print every grid as a table, in several pieces where the terminal is too narrow for one."""
    from rich.text import Text

    for grid in grids(profile):
        console.print(Text(grid.title, "italic"), soft_wrap=True)
        columns = [
            Shown(header, texts)
            for header, texts in zip(grid.headers, zip(*grid.rows, strict=True), strict=True)
        ]
        print_columns(columns, console)


def to_markdown(profiles: Sequence[Profile], command: str) -> str:
    """All grids under headings, the conventions, and the command that produced them."""
    parts = []
    for profile in profiles:
        for grid in grids(profile):
            align = ["left", *["right"] * (len(grid.headers) - 1)]
            body = tabulate(grid.rows, grid.headers, tablefmt="github", disable_numparse=True, colalign=align)
            parts.append(f"### {grid.title}\n\n{body}\n")
    return "\n".join([*parts, *(f"{note}\n" for note in notes_of(profiles)), f"Made with `{command}`.\n"])


def notes_of(profiles: Sequence[Profile]) -> tuple[str, ...]:
    """What the columns mean, and whether a latency was disturbed."""
    pairs = [pair for profile in profiles for each in profile.latency.values() for pair in each]
    busy = (BUSY_NOTE,) if any(_busy(pair) for pair in pairs) else ()
    left_out = dict.fromkeys(
        f"Left out, as they do not fit {profile.setting.backbone}: {', '.join(profile.left_out)}."
        for profile in profiles
        if profile.left_out
    )
    return (*NOTES, *_decoding_notes(profiles), *_other_counts(profiles), *left_out, *busy)


def _decoding_notes(profiles: Sequence[Profile]) -> Iterator[str]:
    """What the costs of generative backbones are of."""
    costs = [profile.rows[0].compute.decoding for profile in profiles]
    types = sorted({cost.precision for cost in costs if cost is not None})
    if types:
        yield (
            "Backbones that write their answers: MACs are those of the prompt, images included, up to the logits of "
            "the first token. *Token* is the next one; each later token attends to one token more. KV cache: keys and "
            f"values of one prompt in {' or '.join(types)}; 16 bits take half of float32."
        )


def _other_counts(profiles: Sequence[Profile]) -> Iterator[str]:
    """Figures that papers count in another way."""
    for profile in profiles:
        where = f"{profile.setting.backbone}, {profile.setting.task.title}"
        if profile.unread:
            total = profile.rows[0].trained.total
            yield (
                f"{where}: total with the {profile.unread:,} weights that no forward pass reads, as papers count: "
                f"{total + profile.unread:,} for full tuning (here {total:,})."
            )
        for row in profile.rows:
            if row.uncounted:
                yield (
                    f"{where}: {row.case.label} updates {row.trained.updated - row.uncounted:,} parameters without "
                    f"its trained token of {row.uncounted:,}, as its authors count (here {row.trained.updated:,})."
                )


def _busy(pair: LatencyPair) -> bool:
    return pair.case.busy or pair.reference.busy


def to_csv(profiles: Sequence[Profile]) -> str:
    """One row per method and task, with unrounded counts."""
    return str(pd.DataFrame(_flat(profiles)).to_csv(index=False))


def _flat_latencies(pairs: Sequence[LatencyPair]) -> Iterator[tuple[str, object]]:
    for pair in pairs:
        part = "" if pair.part == "pass" else f"{pair.part}_"
        name = f"{part}batch_{pair.batch_size}_{pair.execution}"
        yield f"p50_ms_{name}", pair.case.p50
        yield f"full_p50_ms_{name}", pair.reference.p50
        yield f"busy_{name}", _busy(pair)


def _flat_decoding(decoding: Decoding | None) -> dict[str, object]:
    if decoding is None:
        return {}
    return {
        "prompt_tokens": decoding.prompt_tokens,
        "macs_token": decoding.token_macs,
        "kv_cache_bytes": decoding.cache_bytes,
    }


def _flat(profiles: Sequence[Profile]) -> Iterator[dict[str, object]]:
    for profile in profiles:
        setting = profile.setting
        for row in profile.rows:
            yield {
                "backbone": setting.backbone,
                "task": setting.task.name,
                "image_height": setting.image_size[0],
                "image_width": setting.image_size[1],
                "text_length": setting.text_length,
                "method": row.case.label,
                "parameters_updated": row.trained.updated,
                **{f"parameters_{group}": number for group, number in vars(row.trained).items()},
                "parameters_total": row.trained.total,
                "parameters_deployed": row.deployed.total,
                **{f"macs_{name}": macs for name, macs in row.compute.macs.items()},
                "macs_total": _macs(row),
                "macs_with_layer_norm": row.compute.with_layer_norm_total,
                "macs_change": _macs(row) - _macs(profile.rows[0]),
                "macs_with_layer_norm_change": row.compute.with_layer_norm_total
                - profile.rows[0].compute.with_layer_norm_total,
                **_flat_decoding(row.compute.decoding),
                **dict(_flat_latencies(profile.latency.get(row.case.label, ()))),
            }
