"""The long form: a hundred times as many cases, other ones each time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT


@pytest.mark.long
@pytest.mark.timeout(14_400)
def test_a_hundred_times_as_many_cases() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--timeout", "7200", "tests/fuzz"],
        cwd=ROOT,
        env={**os.environ, "HARNESS_FUZZ": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
