"""Tables: numbers, order, and cells that must not be compared."""

from __future__ import annotations

import re
from typing import Any

import pytest

from harness.errors import UserError
from harness.records.record import Record
from harness.report.rendering import render
from harness.report.tables import build_tables
from tests.support.small_table import FAILURE, cells_of, only, row, texts
from tests.support.stored_results import as_json, as_search, make_record


def test_without_full_tuning_there_are_no_differences_from_it() -> None:
    found = row(only([make_record("lora"), make_record("das")]), "lora")
    assert (found["delta_vs_full"], found["macs_change_percent"], found["latency_change_percent"]) == (
        None,
    ) * 3
    assert found["macs"] == 70e6


def test_untouched_backbone_replaces_a_missing_full_tuning() -> None:
    compute = make_record(macs=100_000_000).model_dump(mode="json")["compute"]
    latency = make_record(p50=16.0).model_dump(mode="json")["latency"]
    found = row(
        only([make_record("das", macs=75_000_000, full_compute=compute, full_latency=latency)]), "das"
    )
    assert found["macs_change_percent"] == -25
    assert found["latency_change_percent"] == -25  # 12 of 16 ms


@pytest.mark.parametrize(
    ("change", "field", "values"),
    [
        ({"protocol__batch_size": 32}, "batch_size", ("64", "32")),
        ({"protocol__head_rule": "linear"}, "head_rule", ('"mlp"', '"linear"')),
        ({"protocol__extra": 1}, "extra", ("not stated", "1")),
        ({"cell__backbone__digest": "cd" * 32}, "backbone digest", ("abab", "cdcd")),
        ({"cell__backbone__config": {"image_size": 96}}, "backbone configuration", ("64", "96")),
        ({"cell__task__version": 2}, "task version", ("1", "2")),
        ({"cell__task__options": {}}, "task options", ("0.1", "{}")),
        ({"data__benchmark": "VQA2.0"}, "embedded data", ("true", "false")),
        ({"data__digest": "d2"}, "data digest", ("d1", "d2")),
        ({"reported_split": "val"}, "reported split", ("test", "val")),
        ({"compute__image_size": [32, 64]}, "measured image size", ("[64, 64]", "[32, 64]")),
        ({"compute__text_length": 8}, "measured text length", ("16", "8")),
    ],
)
def test_cells_of_another_protocol_are_refused(
    change: dict[str, Any], field: str, values: tuple[str, str]
) -> None:
    records = [make_record("full"), make_record("lora", **change)]
    with pytest.raises(UserError, match="--all-protocols") as raised:
        build_tables(records)
    message = str(raised.value)
    assert f"{field} differs: " in message
    assert re.search(f"{re.escape(values[0])}.*full seed 0, cell full.0.*{re.escape(values[1])}", message)
    assert "lora seed 0, cell lora.0" in message
    first, second = build_tables(records, all_protocols=True)
    assert list(first.frame["method"]) == ["full"]
    assert list(second.frame["method"]) == ["lora"]
    # Of options the title has only those that differ.
    named = {"backbone configuration": "image_size 64", "task options": "val_fraction 0.1"}.get(field, field)
    assert named in first.title
    assert first.title != second.title


def test_missing_and_failed_measurements_do_not_change_the_protocol() -> None:
    table = only(
        [make_record("full"), make_record("lora", compute=FAILURE), make_record("das", compute=None)]
    )
    assert [row(table, name)["macs"] for name in ("full", "lora", "das")] == [70e6, "failed", None]
    assert " failed |" in render(table, "github")
    assert "failed: lora, vqa, seed 0, compute: operator unknown" in texts(table)


def test_a_failed_cell_is_a_row_that_says_so() -> None:
    empty = {
        "metrics": {},
        "parameters": None,
        "compute": None,
        "latency": [],
        "memory": None,
        "training": None,
    }
    crashed = make_record("das", status="failed", error="out of memory", **empty, tuned_file_bytes=None)
    table = only([make_record("full"), crashed])
    assert {
        row(table, "das")[key] for key in ("vqa_accuracy", "macs", "latency_p50_ms", "tuned_file_mib")
    } == {"failed"}
    assert row(table, "das")["delta_vs_full"] is None
    assert "failed: das, vqa, seed 0: out of memory" in texts(table)


def test_a_mean_leaves_out_the_seed_that_failed_and_says_so() -> None:
    records = [make_record("lora", 0, 60.0), make_record("lora", 1, 62.0)]
    records.append(make_record("lora", 2, status="failed", error="killed", metrics={}))
    table = only(records)
    assert (row(table, "lora")["vqa_accuracy"], row(table, "lora")["seeds"]) == (61.0, 2)
    assert "failed: lora, vqa, seed 2: killed" in texts(table)


def test_only_the_newest_result_of_a_cell_counts() -> None:
    old = make_record("lora", 0, 10.0, cell__id="old", timestamps__finished="2025-01-01T10:30:00+00:00")
    new = make_record("lora", 0, 60.0, cell__id="new")
    for records in ([old, new], [new, old]):
        table = only(records)
        assert row(table, "lora")["vqa_accuracy"] == 60.0
        assert "1 older result of the same cells is left out." in texts(table)


def test_several_tasks_have_a_column_each_and_an_average() -> None:
    other = {
        "cell__task__name": "nlvr2",
        "cell__task__title": "NLVR2",
        "protocol__batch_size": 32,
        "data__benchmark": "NLVR2",
    }
    real = {"data__benchmark": "VQA2.0"}
    records = [
        make_record("full", 0, 70.0, macs=60_000_000, **real),
        make_record("full", 0, 80.0, macs=120_000_000, **other),
        make_record("lora", 0, 69.0, **real),
        make_record("lora", 0, 78.0, **other),
        make_record("das", 0, 71.0, **real),
    ]
    assert only(records[::-1]).title == "VQA2.0, NLVR2 on vilt-mini"  # whichever was finished first
    table = only(records)
    assert table.title == "VQA2.0, NLVR2 on vilt-mini"
    assert [row(table, name)["average"] for name in ("full", "lora", "das")] == [75.0, 73.5, None]
    assert [row(table, name)["seeds"] for name in ("full", "lora", "das")] == [1, 1, 1]  # das: of what it has
    assert row(table, "lora")["delta_vs_full"] == -1.5
    assert row(table, "full")["macs"] == 90e6
    assert row(table, "das")["macs"] is None
    assert "Costs are means over the tasks." in texts(table)
    assert not any("embedded benchmark" in note for note in texts(table))
    head = cells_of(render(table, "github").splitlines()[2])
    assert head[3:6] == ["VQA2.0", "NLVR2", "Average"]


def test_each_backbone_has_its_table() -> None:
    records = [make_record("lora"), make_record("lora", cell__backbone__name="vilt")]
    assert [table.title for table in build_tables(records)] == [
        "vqa (mini) on vilt-mini",
        "vqa (mini) on vilt",
    ]


def test_methods_have_the_papers_order_and_others_follow() -> None:
    names = ["zzz", "das", "seq_bn", "adapter", "lora[r=8]", "lora", "classifier", "full"]
    table = only([make_record(name) for name in names])
    assert list(table.frame["method"]) == [
        *("full", "classifier", "lora", "lora[r=8]", "adapter", "das", "seq_bn", "zzz"),
    ]


def test_latencies_that_were_not_interleaved_are_not_compared() -> None:
    lone = make_record("das").model_dump(mode="json")["latency"]
    lone[0]["group"] = "g1"
    records = [make_record("full", p50=10.0), make_record("lora", p50=12.0), make_record("das", latency=lone)]
    table = only(records)
    assert row(table, "lora")["latency_change_percent"] == pytest.approx(20)
    assert row(table, "das")["latency_change_percent"] is None
    assert "Latencies come from several measurements; only those of the same one can be compared." in texts(
        table
    )
    assert "**12.0 / 13.0**" not in render(table, "github")


def test_latency_of_the_common_measurement_is_shown() -> None:
    both = make_record("das", p50=9.0).model_dump(mode="json")["latency"]
    both.append({**both[0], "p50_ms": 99.0, "group": "alone"})
    table = only([make_record("full", p50=10.0), make_record("das", latency=both)])
    assert row(table, "das")["latency_p50_ms"] == 9.0
    assert row(table, "das")["latency_change_percent"] == pytest.approx(-10)


def test_empty_results_are_an_error() -> None:
    with pytest.raises(UserError, match="no results"):
        build_tables([])


@pytest.mark.parametrize(
    ("warm", "labels"), [({"das"}, "das"), ({"das", "das[skip=4]"}, "das, das[skip=4]"), (set(), "")]
)
def test_note_names_methods_with_a_warm_start(warm: set[str], labels: str) -> None:
    records = [
        make_record(
            label,
            0,
            59.0,
            search=as_search(warm_start=label in warm),
        )
        for label in ("das", "das[skip=4]")
    ]
    told = [note for note in texts(only(records)) if note.startswith("Training starts from")]
    assert told == (
        [f"Training starts from the adapters and head that the search trained: {labels}."] if labels else []
    )


def test_prompt_and_further_tokens_are_columns_apart() -> None:
    def record(method: str, tokens: int, busy: float = 0.0) -> Record:
        made = as_json(method, p50=40.0)
        made["compute"]["decoding"] = {
            "prompt_tokens": 56,
            "token_macs": tokens,
            "cache_bytes": 2048,
            "precision": "float32",
        }
        (prompt,) = made["latency"]
        token = {**prompt, "p50_ms": 3.0, "p90_ms": 3.1 + busy, "samples_ms": [3.0]}
        made["latency"] = [{**token, "part": "token"}, {**prompt, "part": "prompt"}]
        return Record.model_validate(made)

    table = only([record("full", 2_000_000), record("das", 1_500_000)])
    lines = render(table, "github").splitlines()
    header, _, full, das = (cells_of(line) for line in lines if line.startswith("|"))
    first, second = dict(zip(header, full, strict=True)), dict(zip(header, das, strict=True))
    assert first["Latency p50 / p90 (ms)"] == "40.0 / 41.0"
    assert (first["Token FLOPs (M)†"], second["Token FLOPs (M)†"]) == ("2.00", "**1.50**")
    assert (second["Token p50 (ms)"], second["KV cache (KiB)"]) == ("3.00", "2.00")
    assert any("those of the prompt (56 tokens with its images)" in text for text in texts(table))
    assert row(only([record("full", 2_000_000, busy=1.0)]), "full")["latency_busy"]
    assert "token_macs" not in row(only([make_record("full")]), "full")
