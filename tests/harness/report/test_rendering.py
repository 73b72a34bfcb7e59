"""Tables as text: one worked by hand, and the rules of each format."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from harness.errors import UserError
from harness.records.record import Record
from harness.report.columns import Selection
from harness.report.rendering import print_tables, render, render_all
from harness.report.tables import Table, build_tables
from tests.support.small_table import cells_of, only, small_results
from tests.support.stored_results import make_record


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
        "Epochs",
        "Search share (%)",
    ]
    # fmt: off
    assert [cells_of(line) for line in rest[:4]] == [
        # Full tuning: mean 62 of 61, 63, 62, whose sample deviation is 1.
        ["full", "2400.00", "80.00", "**62.00 ± 1.00**", "3", "0.00", "80.00", "0.00",
         "10.0 / 11.0", "0.00", "512", "10.0", "5", "–"],
        ["classifier", "0", "80.00", "50.00", "1", "-12.00", "80.00", "0.00",
         "10.0 / 11.0", "0.00", "–", "**0.25**", "5", "–"],
        ["lora[r=8]", "12.50", "80.00", "60.50", "1", "-1.50", "80.00", "0.00",
         "failed", "–", "512", "**0.25**", "5", "–"],
        # 60 of 80 M MACs is 25 % less, 8 of 10 ms 20 % less.
        ["das", "24.00", "80.00", "59.00", "1", "-3.00", "**60.00**", "-25.00",
         "**8.00 / 9.00**", "-20.00", "512", "**0.25**", "5 + 3", "40"],
    ]
    # fmt: on
    notes = "\n".join(rest[4:])
    assert "the embedded benchmark, not VQA2.0; not comparable" in notes
    assert "Chance, or always the most frequent answer, scores 31.25." in notes
    assert "± sample standard deviation over 1 to 3 seeds." in notes
    assert "which papers of this field call FLOPs; 64×64 pixels, 16 tokens, batch size 1." in notes
    assert "Epochs: of training + of the search before it." in notes
    assert r"failed: lora[r=8], vqa, seed 0, latency: operator unknown" in notes


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
    assert r"\shortstack[r]{FLOPs \\ (M)$^\dagger$}" in text
    assert r"$\Delta$ full" in text
    scores, costs = text.split(r"\begin{tabular}{")[1:]
    for part in (scores, costs):
        rows = [line for line in part.splitlines() if line.endswith(r" \\")]
        assert {len(re.split(r"(?<!\\)&", line)) for line in rows} == {len(part.split("}")[0])}
    assert "Accuracy" in scores
    assert "FLOPs" not in scores
    assert "Costs" not in costs.split(r"\end{tabular}")[1]  # one task: no mean over tasks
    assert not re.search(r"[^\x00-\x7f]", text)


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


def on_terminal(table: Table, width: int, selection: Selection = Selection()) -> str:
    out = io.StringIO()
    print_tables([table], Console(file=out, width=width, force_terminal=True, color_system=None), selection)
    return out.getvalue()


def test_table_of_one_task_fits_into_a_hundred_characters() -> None:
    lines = on_terminal(only(small_results()), 100).splitlines()
    assert max(map(len, lines)) <= 100
    das = next(line for line in lines if line.startswith("das"))
    for text in ("24.00", "59.00", "60.00", "-3.00", "8.00 / 9.00", "512", "0.25"):
        assert text in das


def four_tasks() -> list[Record]:
    return [
        make_record(method, seed, 59.0 + seed, cell__task__name=task)
        for method in ("full", "shallow_prompt")
        for task in ("vqa", "nlvr2", "snli_ve", "retrieval")
        for seed in range(3)
    ]


@pytest.mark.parametrize(("width", "tables"), [(40, 6), (70, 3), (80, 3), (110, 2), (150, 1)])
def test_narrow_terminal_splits_the_table_and_cuts_nothing(width: int, tables: int) -> None:
    text = on_terminal(only(four_tasks()), width)
    rows = [line for line in text.splitlines() if line.startswith("shallow_prompt")]
    assert len(rows) == tables
    assert max(map(len, rows)) <= width
    whole = " ".join(rows)
    assert len(re.findall("60.00 ?± ?1.00", whole)) == 4
    for number in ("12.00", "70.00", "12.0 / 13.0", "512", "0.25"):
        assert number in whole
    assert "…" not in text


def test_pipe_has_no_width_limit() -> None:
    out = io.StringIO()
    print_tables([only(four_tasks())], Console(file=out, width=20))
    (row,) = [line for line in out.getvalue().splitlines() if line.startswith("shallow_prompt")]
    assert row.endswith("0.25")
    assert row.split()[1] == "12.00"


def test_columns_are_chosen_by_name() -> None:
    selection = Selection(("flops", "method", "vqa", "speed"))
    text = render(only(small_results()), "github", selection)
    assert cells_of(text.splitlines()[2]) == ["Method", "FLOPs (M)†", "Accuracy", "Training (ex/s)"]
    assert "Training speeds come from separate runs" in text
    assert "**205**" not in text
    assert "Updated:" not in text  # notes only on what is shown
    with pytest.raises(UserError, match=r"no column 'flop'\. Did you mean 'flops'"):
        render(only(small_results()), "html", Selection(("flop",)))
    with pytest.raises(UserError, match="CSV always has all columns"):
        render(only(small_results()), "csv", selection)


def test_common_notes_appear_once() -> None:
    records = [*four_tasks(), make_record("lora", cell__backbone__name="vilt")]
    text = render_all(build_tables(records), "github")
    assert text.count("which papers of this field call FLOPs") == 1
    assert text.count("One seed, so there is no spread") == 1
    assert text.index("Costs are means over the tasks") < text.index("### vqa (mini) on vilt\n")


def test_tasks_with_different_numbers_of_seeds_are_named() -> None:
    kept = {"vqa": (0, 1, 2), "nlvr2": (0,), "snli_ve": (0, 1, 2), "retrieval": (0, 1)}
    records = [record for record in four_tasks() if record.cell.seed in kept[record.cell.task.name]]
    text = render_all(build_tables(records), "github")
    assert "over seeds: 3 (vqa, snli\\_ve), 1 (nlvr2), 2 (retrieval).  " in text
    assert "no spread" not in text


def test_busy_machine_is_marked_and_nothing_is_best() -> None:
    records = [make_record("full", p50=10.0), make_record("lora", p50=12.0)]
    busy = records[1].model_dump(mode="json")["latency"]
    busy[0]["p90_ms"] = 15.1
    text = render(only([records[0], make_record("lora", p50=12.0, latency=busy)]), "github")
    assert "| 10.0 / 11.0 |" in re.sub(" +", " ", text)
    assert "| 12.0 / 15.1‡ |" in re.sub(" +", " ", text)
    assert "‡ other programs used the machine" in text
    assert "‡" not in render(only(records), "github")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path: Path) -> None:
    names = ("full", 'odd_[name]<|>"~^ ☃é')
    records = [
        make_record(name, seed, 60.0, cell__task__title="T&T 50 %") for name in names for seed in (0, 1)
    ]
    body = render(only([*small_results(), *records[2:]]), "latex")
    source = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "table.tex").write_text(source)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_picture_shows_what_the_terminal_shows() -> None:
    picture = render(only(small_results()), "svg")
    assert picture.startswith("<svg")
    assert "lora[r=8]" in picture
    assert "VQA2.0" in picture
