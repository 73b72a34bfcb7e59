"""The page of all settings is up to date and agrees with the declarations."""

from __future__ import annotations

from harness.config.declared import SETTINGS
from harness.config.page import render_page
from tests.support.paths import ROOT


def test_the_page_is_written_from_the_declaration() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == render_page(), "write it again: python -m harness.config > docs/settings.md"


def test_every_setting_has_a_row_with_its_sentence_and_default() -> None:
    rows = [line for line in render_page().splitlines() if line.startswith("| `")]
    assert len(rows) == len(SETTINGS)
    for row, (key, declared) in zip(rows, SETTINGS.items(), strict=True):
        assert row.startswith(f"| `{key}`")
        assert declared.description in row
        assert declared.description.endswith(".")
        assert declared.required or f"| {declared.default} |" in row
