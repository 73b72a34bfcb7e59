"""`harness table` and `harness show` on a small results folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from harness.cli.show import show
from harness.cli.table import table as table_command
from harness.errors import UserError
from harness.records.store import Store
from tests.support.small_table import small_results


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


def test_show_prints_a_readable_record(results: Path) -> None:
    text = re.sub(r"\s+", " ", invoke(show, "das", "--results", results).stdout)
    for part in ("das.0.0a1b2c", "mini (embedded)", "test (reported) accuracy 59.00", "24,000 updated of"):
        assert part in text
    assert "0.06 GMACs = 0.12 GFLOPs at 64×64 pixels, 16 tokens" in text
    assert "search 9 s (40 %): skipped joint.1" in text
    assert "latency failed: operator unknown" in re.sub(
        r"\s+", " ", invoke(show, "lora", "--results", results).stdout
    )
