"""The environment fits the record and does not reveal host or user."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

import pytest

from harness.records import environment
from harness.records.record import Environment


def test_environment_fits_the_record_and_is_json() -> None:
    found = environment.describe_environment()
    read = Environment.model_validate(json.loads(json.dumps(found)))
    assert read.versions["python"] == platform.python_version()
    assert read.versions["torch"] is not None
    assert read.threads >= 1
    assert read.hardware["cpu"]


def test_neither_host_nor_user_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "hdoe")
    monkeypatch.setenv("HOME", "/home/hdoe")
    monkeypatch.setattr(
        "sys.argv",
        [
            "/home/hdoe/.venv/bin/harness",
            "run",
            "--data-root",
            "/home/hdoe/vqa",
            "/scratch/hdoe/my data",
            "hdoes",
        ],
    )
    found = environment.describe_environment()
    assert found["command"] == "harness run --data-root '~/vqa' '/scratch/USER/my data' hdoes"
    assert platform.node() not in json.dumps(found) or platform.node() in ("", "localhost", "x86_64")


def test_paths_that_only_share_a_prefix_with_home_are_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USER", raising=False)
    monkeypatch.delenv("LOGNAME", raising=False)
    monkeypatch.setenv("HOME", "/home/h")
    assert environment.command_line(["x", "/home/hx/data", "/home/h"]) == "x /home/hx/data '~'"
    assert environment.command_line(["/x/harness/__main__.py", "run"]) == "python -m harness run"


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_changed_code_makes_a_checkout_dirty_and_changed_results_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_SOURCE", tmp_path)
    assert environment.describe_environment()["commit"] is None
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "a.py").write_text("1\n")
    git(tmp_path, "init", "-q")
    assert environment.describe_environment()["commit"] is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "m")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "record.json").write_text("{}")
    clean = environment.describe_environment()
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "methods" / "b.py").write_text("2\n")
    assert environment.describe_environment()["dirty"] is True


def test_checkout_is_the_folder_that_holds_the_packages() -> None:
    assert all((environment._SOURCE / name).exists() for name in environment.CODE)


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = environment.describe_environment()
    assert (found["commit"], found["dirty"]) == (None, None)


def test_missing_package_has_no_version() -> None:
    assert environment.package_version("no-such-package-at-all") is None


def test_a_command_is_told_where_there_is_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "HOME", "~"
    )  # what os.path.expanduser gives without HOME and without an entry in passwd
    assert environment.command_line(["harness", "run", "/data/x"]) == "harness run /data/x"
