from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli import call
from harness.cli.boundary import run_command
from harness.errors import UserError
from tests.support.paths import ROOT


def fail(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "/data/x"), "/data/x: No space left on device"),
        (MemoryError(), "out of memory (MemoryError)"),
        (RecursionError("maximum recursion depth exceeded"), "RecursionError: maximum"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "UnicodeDecodeError: 'utf-8'"),
        (RuntimeError("first\nsecond"), "RuntimeError: first"),
    ],
)
def test_what_nobody_foresaw_is_one_line_and_its_traceback_is_in_a_file(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(fail(error)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"harness: {message}")
    assert printed.count("\n") == 1
    assert "test_boundary.py:" in printed
    log = Path(printed.strip().rpartition("the traceback is in ")[2])
    assert "Traceback (most recent call last)" in log.read_text()
    log.unlink()


def test_an_error_of_the_user_is_one_line_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(fail(UserError("a.json: 'x\ny\x1b[2J\udc80'"))) == 2
    assert capsys.readouterr().err == "harness: a.json: 'x\\ny\\x1b[2J\\udc80'\n"


def test_exit_statuses() -> None:
    assert run_command(lambda: None) == 0
    assert run_command(fail(SystemExit(1))) == 1
    assert run_command(fail(SystemExit(None))) == 0
    assert run_command(fail(KeyboardInterrupt())) == 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "--zz"], "No such option: --zz; see `harness table --help`"),
        (["tabel"], "No such command 'tabel'"),
        (["show"], "Missing argument"),
        (["check", "r", "--baseline"], "Option '--baseline' requires an argument"),
        (["profile", "--text-length", "x"], "Invalid value for '--text-length'"),
        (["run", "--zz"], "--zz: no such setting."),
        (["run", "--methods", "lora", "--methods=das"], "--methods: given twice; give it once, several"),
        (["table", "a\nb"], "a\\nb: no results in this folder"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"harness: {message}")
    assert printed.count("\n") == 1


def test_without_arguments_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert call([]) == 0
    assert "Usage: harness" in capsys.readouterr().out


PRINT = """
import sys
from pathlib import Path
from harness.cli import call
from harness.cli.boundary import run_command

def work():
    print("\\u0394 " * 50_000, flush=True)
    Path(sys.argv[1]).write_text("done")

raise SystemExit(run_command(work))
"""


@pytest.mark.parametrize(
    ("redirection", "encoding", "status", "message"),
    [
        (">/dev/full", "utf-8", 1, "harness: standard output: cannot be written: No space left on device.\n"),
        (">&-", "utf-8", 0, ""),
        ("| true", "utf-8", 1, ""),
        (">/dev/null", "ascii", 0, ""),
        ("2>&- >/dev/null", "latin-1", 0, ""),
    ],
)
def test_work_is_done_whatever_becomes_of_standard_output(
    tmp_path: Path, redirection: str, encoding: str, status: int, message: str
) -> None:
    done = subprocess.run(
        [
            "bash",
            "-o",
            "pipefail",
            "-c",
            f'"$0" -c "$1" "$2" {redirection}',
            sys.executable,
            PRINT,
            tmp_path / "out",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, message)
    assert (tmp_path / "out").read_text() == "done"


def test_characters_that_an_encoding_lacks_are_replaced(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINT, tmp_path / "out"],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"? " * 50_000 + b"\n"


@pytest.mark.parametrize("name", ["tasks.py", "methods.py"])
def test_a_module_with_the_name_of_a_package_of_the_harness_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("print('mine')")
    done = subprocess.run(
        [sys.executable, "-m", "harness", "list"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"harness: {tmp_path / name}: has the name of the harness's package")
    assert done.stderr.count("\n") == 1
