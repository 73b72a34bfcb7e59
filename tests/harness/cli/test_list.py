"""`harness list`: names, and every option with its meaning, default and allowed values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from harness.cli.described import Option, options_of
from harness.cli.methods import list_names
from harness.errors import UserError
from harness.registry import BUILT_IN


@dataclass(frozen=True)
class Inherited:
    """Options of something.

    seed: any number.
    """

    seed: int = 0


@dataclass(frozen=True)
class Options(Inherited):
    """Options of an example.

    This sentence is of no option.

    rank: number of columns; by default
        as many as rows.
    low, high: bounds.
    style: how it looks.
    """

    rank: int | None = None
    low: float = 0.1
    high: float = 1.0
    style: Literal["plain", "bold"] = "plain"
    parts: tuple[str, ...] = ("a", "b")
    fast: bool = False

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 2:
            raise ValueError("rank")
        if not 0 < self.low < 1:
            raise ValueError("low")


def test_every_option_has_default_allowed_values_and_meaning() -> None:
    assert list(options_of(Options)) == [
        Option("seed", "0", "whole number", "any number."),
        Option("rank", "none", "whole number ≥ 2 or none", "number of columns; by default as many as rows."),
        Option("low", "0.1", "number > 0 and < 1", "bounds."),
        Option("high", "1.0", "number", "bounds."),
        Option("style", "plain", "plain, bold", "how it looks."),
        Option("parts", "a+b", "values joined by +", ""),
        Option("fast", "false", "true, false", ""),
    ]


def invoke(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(list_names)
    return CliRunner().invoke(app, list(arguments))


def test_all_names_are_listed() -> None:
    text = invoke().stdout
    for kind in BUILT_IN.values():
        assert all(name in text for name in kind)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("LoRA", ["lora: low-rank", "r = 4   (whole number ≥ 1)", "rank of the update", "'lora[r=4]'"]),
        ("skip", ["\n      - `last`: the last blocks", "\n      - `alternate`: evenly spaced"]),
        ("vqa", ["vqa: VQA2.0", "Scored by accuracy", "limit_train = none   (whole number ≥ 1 or none)"]),
        ("full", ["It has no options."]),
    ],
)
def test_one_name_shows_its_options(name: str, parts: list[str]) -> None:
    text = invoke(name).stdout
    for part in parts:
        assert part in text


@pytest.mark.parametrize("name", [name for kind in ("methods", "tasks") for name in BUILT_IN[kind]])  # type: ignore[index]
def test_every_option_of_a_built_in_is_explained(name: str) -> None:
    from harness.registry import resolve_method, resolve_task

    resolve = resolve_method if name in BUILT_IN["methods"] else resolve_task
    unexplained = [each.name for each in options_of(resolve(name).Options) if not each.meaning]
    assert not unexplained


def test_unknown_name_is_an_error() -> None:
    error = invoke("lorra").exception
    assert isinstance(error, UserError)
    assert "no method or task is called 'lorra'. Did you mean 'lora'?" in str(error)
