"""The examples of the page on Python form one script that runs without a `__main__` guard."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.records.store import Store
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


@pytest.mark.timeout(900)
def test_the_page_runs_as_an_unguarded_script(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    script = tmp_path / "page.py"
    script.write_text("\n".join(["print('the script runs')", *blocks]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HARNESS_CACHE": str(tmp_path / "cache"),
            "OMP_NUM_THREADS": "1",  # threads that wait for each other are slow on a busy machine
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the script runs") == 1  # though processes of their own have run cells
    assert "4 of 4 cells to run" in done.stdout
    assert "1 of 2 cells to run" in done.stdout  # LoRA is the same by name and as an object
    assert "| lora[r=8]" in done.stdout
    assert "{'accuracy': " in done.stdout
    records = Store(tmp_path / "results").records()
    assert {record.status for record in records} == {"finished"}
    assert {record.cell.method.label for record in records} == {"classifier", "lora[r=8]", "shift"}
    assert list((tmp_path / "figures").glob("tradeoff-*.png"))
