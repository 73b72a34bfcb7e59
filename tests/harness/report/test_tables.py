"""Tables: one worked by hand, cells that must not be compared, and the rules of each format."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from harness.cli.show import show
from harness.cli.table import table as table_command
from harness.errors import UserError
from harness.records.record import Record
from harness.records.store import Store
from harness.report.rendering import print_table, render, render_all
from harness.report.tables import Table, build_tables
from tests.support.stored_results import as_search, make_record

FULL: dict[str, Any] = {
    "updated": 2_400_000,
    "macs": 80_000_000,
    "p50": 10.0,
    "tuned_file_bytes": 10 * 2**20,
    "training__examples_per_second": 100.0,
}
FAILURE = {"error": "operator unknown"}


def small_results() -> list[Record]:
    """Results in any order, DAS before full tuning; LoRA's latency failed."""
    return [
        make_record("das", 0, 59.0, 24_000, 60_000_000, 8.0, search=as_search()),
        make_record("lora[r=8]", 0, 60.5, 12_500, 80_000_000, latency=FAILURE),
        make_record("full", 0, 61.0, **FULL),
        make_record("full", 1, 63.0, **FULL),
        make_record("full", 2, 62.0, **FULL),
        make_record("classifier", 0, 50.0, 0, 80_000_000, 10.0, memory=None),
    ]


def only(records: list[Record], **options: Any) -> Table:
    (table,) = build_tables(records, **options)
    return table


def test_small_table_equals_one_worked_by_hand() -> None:
    text = render(only(small_results()), "github")
    title, _, head, _, *rest = text.splitlines()
    assert title == "### vqa (mini) on vilt-mini"
    assert cells_of(head) == [
        "Method",
        "Updated (K)",
        "Common+head (K)",
        "Accuracy",
        "Seeds",
        "Δ full (points)",
        "FLOPs (M)†",
        "ΔFLOPs (%)",
        "Latency p50 / p90 (ms)",
        "ΔLatency (%)",
        "Training memory (MiB)",
        "Tuned file (MiB)",
        "Training (ex/s)",
        "Search share (%)",
    ]
    # fmt: off
    assert [cells_of(line) for line in rest[:4]] == [
        # Full tuning: mean 62 of 61, 63, 62, whose sample deviation is 1.
        ["full", "2400.00", "80.00", "**62.00 ± 1.00**", "3", "0.00", "80.00", "0.00",
         "10.0 / 11.0", "0.00", "512", "10.0", "100", "–"],
        ["classifier", "0", "80.00", "50.00", "1", "-12.00", "80.00", "0.00",
         "10.0 / 11.0", "0.00", "–", "**0.25**", "**205**", "–"],
        ["lora[r=8]", "12.50", "80.00", "60.50", "1", "-1.50", "80.00", "0.00",
         "failed", "–", "512", "**0.25**", "**205**", "–"],
        # 60 of 80 M MACs is 25 % less, 8 of 10 ms 20 % less.
        ["das", "24.00", "80.00", "59.00", "1", "-3.00", "**60.00**", "-25.00",
         "**8.00 / 9.00**", "-20.00", "512", "**0.25**", "**205**", "40"],
    ]
    # fmt: on
    notes = "\n".join(rest[4:])
    assert "mini benchmark, not VQA2.0" in notes
    assert "the most frequent answer, or chance, scores 31.25" in notes
    assert "± is the sample standard deviation over seeds (1 to 3 of them)." in notes
    assert "† multiply-accumulates, as papers of this field count; 64×64 pixels, 16 tokens, batch 1." in notes
    assert r"failed: lora[r=8], vqa, seed 0, latency: operator unknown" in notes


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def row(table: Table, method: str) -> dict[str, Any]:
    (found,) = [row for row in table.frame.to_dict("records") if row["method"] == method]
    return found


def test_without_full_tuning_there_are_no_differences_from_it() -> None:
    found = row(only([make_record("lora"), make_record("das")]), "lora")
    assert (found["delta_vs_full"], found["macs_change_percent"], found["latency_change_percent"]) == (
        None,
    ) * 3
    assert found["macs"] == 70e6


def test_the_backbone_as_loaded_stands_in_for_full_tuning_where_it_was_measured() -> None:
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
    assert "failed: lora, vqa, seed 0, compute: operator unknown" in table.notes


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
    assert "failed: das, vqa, seed 0: out of memory" in table.notes


def test_a_mean_leaves_out_the_seed_that_failed_and_says_so() -> None:
    records = [make_record("lora", 0, 60.0), make_record("lora", 1, 62.0)]
    records.append(make_record("lora", 2, status="failed", error="killed", metrics={}))
    table = only(records)
    assert (row(table, "lora")["vqa_accuracy"], row(table, "lora")["seeds"]) == (61.0, 2)
    assert "failed: lora, vqa, seed 2: killed" in table.notes


def test_only_the_newest_result_of_a_cell_counts() -> None:
    old = make_record("lora", 0, 10.0, cell__id="old", timestamps__finished="2025-01-01T10:30:00+00:00")
    new = make_record("lora", 0, 60.0, cell__id="new")
    for records in ([old, new], [new, old]):
        table = only(records)
        assert row(table, "lora")["vqa_accuracy"] == 60.0
        assert "1 older results of the same cells are left out." in table.notes


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
    assert "Costs are means over the tasks." in table.notes
    assert not any("mini benchmark" in note for note in table.notes)
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
    assert "Latencies of several measurements: only those that were interleaved compare." in table.notes
    assert "**12.0 / 13.0**" not in render(table, "github")


def test_latency_of_the_common_measurement_is_shown() -> None:
    both = make_record("das", p50=9.0).model_dump(mode="json")["latency"]
    both.append({**both[0], "p50_ms": 99.0, "group": "alone"})
    table = only([make_record("full", p50=10.0), make_record("das", latency=both)])
    assert row(table, "das")["latency_p50_ms"] == 9.0
    assert row(table, "das")["latency_change_percent"] == pytest.approx(-10)


def test_large_models_are_counted_in_millions_and_giga() -> None:
    big = {"parameters__groups__backbone_frozen": 110_000_000, "parameters__total": 110_380_000}
    table = only([make_record("lora", updated=300_000, macs=55_840_000_000, **big)])
    text = render(table, "github")
    assert "Updated (M)" in text
    assert "FLOPs (G)†" in text
    assert cells_of(text.splitlines()[4])[:3] == ["lora", "0.30", "0.08"]
    assert "| 55.84 |" in re.sub(" +", " ", text)


def test_ties_are_all_bold_and_a_column_of_equals_is_not() -> None:
    table = only([make_record("lora", 0, 60.001), make_record("das", 0, 60.0), make_record("full", 0, 50.0)])
    text = render(table, "github")
    assert text.count("**60.00**") == 2
    assert text.count("**") == 4


def test_latex_is_escaped() -> None:
    records = [
        make_record("my_prompt[x=1]", 0, 60.0),
        make_record("my_prompt[x=1]", 1, 62.0),
        make_record("full"),
    ]
    text = render(only(records), "latex")
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert r"my\_prompt[x=1] & " in body
    assert r"\textbf{61.00 $\pm$ 1.41}" in body
    assert "$+$1.00" in body
    assert r"FLOPs (M)$^\dagger$" in text
    assert r"$\Delta$FLOPs (\%)" in text
    columns = text.split(r"\begin{tabular}{")[1].split("}")[0]
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert {len(re.split(r"(?<!\\)&", line)) for line in rows} == {len(columns)}
    assert not re.search(r"[±Δ†×–…]", text.partition("\n")[2])


def test_html_is_escaped() -> None:
    text = render(only([make_record("a<b>", 0, 60.0), make_record("full")]), "html")
    assert "a&lt;b&gt;" in text
    assert "<b>60.00</b>" not in text
    assert "a<b>" not in text
    assert text.count("<tr>") == 3


def test_csv_is_read_back_with_numbers_in_full() -> None:
    records = [*small_results(), make_record("lora", cell__backbone__name="vilt")]
    rows = list(csv.DictReader(io.StringIO(render_all(build_tables(records), "csv"))))
    assert [(line["backbone"], line["method"]) for line in rows] == [
        *(("vilt-mini", name) for name in ("full", "classifier", "lora[r=8]", "das")),
        ("vilt", "lora"),
    ]
    assert {line["benchmark"] for line in rows} == {"mini"}
    assert float(rows[2]["updated_parameters"]) == 12_500
    assert float(rows[0]["vqa_accuracy_sd"]) == 1.0
    assert rows[0]["seeds"] == "3"
    assert rows[1]["peak_training_mib"] == ""
    assert rows[2]["latency_p50_ms"] == "failed"
    assert "†" not in "".join(rows[0])


def test_terminal_table_has_at_most_a_hundred_columns() -> None:
    out = io.StringIO()
    print_table(only(small_results()), Console(file=out, width=100))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    das = next(line for line in lines if line.startswith("das"))
    for text in ("24.00", "59.00", "60.00", "-3.00", "8.00 / 9.00", "512", "0.25"):
        assert text in das
    assert any("not VQA2.0" in line for line in lines)


@pytest.mark.parametrize("width", [70, 80, 95, 110, 150])
def test_a_narrow_terminal_leaves_out_columns_and_cuts_no_number(width: int) -> None:
    records = [
        make_record(method, seed, 59.0 + seed, cell__task__name=task)
        for method in ("full", "shallow_prompt")
        for task in ("vqa", "nlvr2", "snli_ve", "retrieval")
        for seed in range(3)
    ]
    out = io.StringIO()
    print_table(only(records), Console(file=out, width=width))
    (line,) = (line for line in out.getvalue().splitlines() if line.startswith("shallow_prompt"))
    assert "…" not in line
    assert len(re.findall("60.00 ?± ?1.00", line)) == 4
    assert ("No room" in out.getvalue()) == (width < 150)


def test_the_picture_shows_what_the_terminal_shows() -> None:
    picture = render(only(small_results()), "svg")
    assert picture.startswith("<svg")
    assert "lora[r=8]" in picture
    assert "VQA2.0" in picture


def test_empty_results_are_an_error() -> None:
    with pytest.raises(UserError, match="no results"):
        build_tables([])


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store = Store(tmp_path / "results")
    for record in small_results():
        store.commit(record)
    store.folder("interrupted").mkdir()
    return store.root


def invoke(command: Any, *arguments: object) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_prints_and_counts_what_is_unfinished(results: Path) -> None:
    done = invoke(table_command, results)
    assert done.exit_code == 0, done.exception
    assert "lora[r=8]" in done.stdout
    assert "1 cell is unfinished" in done.stderr
    assert invoke(table_command, results, "--format", "csv").stdout.startswith(
        "table,backbone,benchmark,method,"
    )


@pytest.mark.parametrize(
    ("name", "start"), [("t.md", "###"), ("t.tex", "%"), ("t.csv", "table,"), ("t.html", "<h3>")]
)
def test_file_suffix_chooses_the_format(results: Path, tmp_path: Path, name: str, start: str) -> None:
    assert invoke(table_command, results, "--output", tmp_path / name).exit_code == 0
    assert (tmp_path / name).read_text().startswith(start)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "t.txt"), "unknown ending; use .md, .tex, .csv, .html"),
        (("--output", "t.md", "-f", "terminal"), "a file needs a format other than terminal"),
    ],
)
def test_command_refuses_unknown_formats(results: Path, arguments: tuple[str, ...], message: str) -> None:
    error = invoke(table_command, results, *arguments).exception
    assert isinstance(error, UserError)
    assert message in str(error)


def test_folder_without_results_is_an_error(tmp_path: Path) -> None:
    error = invoke(table_command, tmp_path / "none").exception
    assert isinstance(error, UserError)
    assert "no results in this folder" in str(error)


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
    told = [note for note in only(records).notes if note.startswith("Trained on from where the search left")]
    assert told == ([f"Trained on from where the search left adapters and head: {labels}."] if labels else [])


def test_show_prints_a_readable_record(results: Path) -> None:
    text = re.sub(r"\s+", " ", invoke(show, "das", "--results", results).stdout)
    for part in ("das.0.0a1b2c", "mini (embedded)", "test (reported) accuracy 59.00", "24,000 updated of"):
        assert part in text
    assert "0.06 GMACs = 0.12 GFLOPs at 64×64 pixels, 16 tokens" in text
    assert "search 9 s (40 %): skipped joint.1" in text
    assert "latency failed: operator unknown" in re.sub(
        r"\s+", " ", invoke(show, "lora", "--results", results).stdout
    )
