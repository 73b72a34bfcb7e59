"""`harness methods` and `harness list`: what a user sees of the methods."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.cli.methods import what_trains
from harness.registry import BUILT_IN, resolve_method


def rows(*arguments: str) -> list[list[str]]:
    shown = CliRunner().invoke(app, ["methods", *arguments], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in shown.output.splitlines()]


def test_methods_are_shown_with_their_closed_forms() -> None:
    found = {row[0]: row for row in rows("--methods", "lora,lst,das[blocks=3]+lora") if len(row) > 1}
    lora = 12 * 2 * 4 * 2 * 768
    assert found["lora"][:5] == ["lora", "added", f"{lora:,}", "+0.00 %", "+0"]
    assert found["lora"][5:] == ["low-rank updates", "Hu et al., ICLR 2022"]
    assert found["lst"][2] == "7,402,764"
    assert found["das[blocks=3]+lora"][2] == f"{297_408 + 11 * 299_712 + 11 * lora // 12:,}"


def test_what_a_method_trains() -> None:
    assert [what_trains(*counts) for counts in ((1, 0), (0, 1), (1, 1), (0, 0))] == [
        "added",
        "pretrained",
        "added and pretrained",
        "nothing more",
    ]


@pytest.mark.parametrize("name", BUILT_IN["methods"])
def test_every_built_in_method_has_a_family(name: str) -> None:
    assert resolve_method(name).family != "other"
