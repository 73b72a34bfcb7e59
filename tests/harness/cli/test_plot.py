"""`harness plot` where a notebook or a container has left its mark on the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT


def test_figures_need_neither_a_notebooks_backend_nor_a_home_folder(tmp_path: Path) -> None:
    results, figures = ROOT / "results" / "first-run", tmp_path / "missing" / "figures"
    environment = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"}
    done = subprocess.run(
        [sys.executable, "-c", "from harness.cli import main; main()", "plot", results, "-o", figures],
        cwd=ROOT,
        env={
            **environment,
            "HOME": "/proc/nonexistent",
            "XDG_CONFIG_HOME": "/proc/nonexistent",
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(figures.glob("*.png"))
