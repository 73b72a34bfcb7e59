"""Links between pages lead somewhere. A page of the site may link only to what is in `docs/`."""

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"^```.*?^```$|^    .*?$|`[^`\n]*`", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if re.match(r"[a-z]+:", target):
            continue
        assert (page.parent / target).exists(), target
        inside = page.parent != ROOT / "docs" or not target.startswith("..")
        assert inside, f"{target} is not part of the site"
