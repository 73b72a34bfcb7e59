"""The GitHub workflow of the benchmark: the commands and files it uses exist."""

from __future__ import annotations

import re

from typer.main import get_command

from harness.cli import app
from harness.config.sources import build_settings, from_file
from tests.support.paths import ROOT


def test_workflow_uses_existing_commands_and_files() -> None:
    workflow = (ROOT / ".github/workflows/benchmark.yml").read_text()
    commands = re.findall(r"run: harness (.+)", workflow)
    assert [command.split()[0] for command in commands] == ["run", "check", "report"]
    known = get_command(app).commands  # type: ignore[attr-defined]
    for command in commands:
        name, *arguments = command.split()
        context = known[name].make_context(name, arguments)
        assert context.params


def test_workflow_checks_the_results_folder_of_its_experiment() -> None:
    settings = build_settings(from_file(ROOT / "results/ci.toml"))
    workflow = (ROOT / ".github/workflows/benchmark.yml").read_text()
    assert f"harness check {settings.output.results} " in workflow
    assert {spec.name for spec in settings.methods} >= {"full", "lora", "das"}
    assert settings.backbone == "vilt-mini"
