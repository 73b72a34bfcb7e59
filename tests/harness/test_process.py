"""Ctrl-C is not lost where Python discards the exception."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.experiment.progress import ProgressReporter
from harness.process import Interrupts
from tests.support.paths import ROOT


class Interrupted:
    """An object during whose `__del__` Ctrl-C is pressed; Python ignores exceptions there."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def handler_of_a_program() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_unheard() -> None:
    thing = Interrupted()
    del thing


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_loses_is_raised_by_the_next_check() -> None:
    with Interrupts() as interrupts:
        interrupts.check()
        press_unheard()
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                interrupts.check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_outside_of_del_is_raised_at_once() -> None:
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupts.came


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("told", ["begin", "stage", "advance", "epoch", "note"])
def test_next_report_of_a_run_raises_the_interrupt(told: str) -> None:
    cell: Any = object()
    arguments = {
        "begin": (cell,),
        "stage": (cell, "train", 1),
        "advance": (cell, 1),
        "epoch": (cell, {}),
        "note": ("",),
    }
    with Interrupts() as interrupts:
        press_unheard()
        reporter = ProgressReporter(Console(file=io.StringIO()), [], interrupts)
        with pytest.raises(KeyboardInterrupt):
            getattr(reporter, told)(*arguments[told])


def test_handler_of_the_caller_is_kept() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        interrupts.check()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_handler_is_not_installed_outside_the_main_thread() -> None:
    seen: list[object] = []

    def enter() -> None:
        with Interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_worker_processes_start_where_the_folder_for_temporary_files_has_a_long_path(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    code = (
        "from harness.process import prepare_process; prepare_process()\n"
        "from multiprocessing.connection import Listener\n"
        "import os, tempfile\n"
        "with Listener(family='AF_UNIX') as listener: print(len(listener.address) < 108)\n"
        "print(tempfile.gettempdir() == os.environ['TMPDIR'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(long)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["True", "True"], done.stderr
