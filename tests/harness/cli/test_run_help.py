"""Help of the commands."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.cli.settings_options import EXAMPLES


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_run_has_groups_and_whole_examples(flag: str) -> None:
    text = CliRunner().invoke(app, ["run", flag]).stdout
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[:2] == ["Arguments:", "Options:"]
    assert headings[-1] == "Examples:"
    assert len(headings) > 6
    assert len(EXAMPLES) == 3
    for command, purpose in EXAMPLES:
        assert command in text
        assert purpose in text


def test_examples_are_valid_commands() -> None:
    from harness.config.sources import build_settings, from_flags

    for command, _ in EXAMPLES[:2]:
        words = command.replace("'", "").split()[2:]
        flags = dict(zip(words[::2], words[1::2], strict=True))
        build_settings(
            from_flags({key.removeprefix("--").replace("-", "_"): value for key, value in flags.items()})
        )


def test_completion_can_be_installed() -> None:
    assert "--install-completion" in CliRunner().invoke(app, ["-h"]).stdout
