from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness import folders
from harness.errors import UserError
from harness.folders import cache_folder, home_expanded


def test_home_folders_are_put_in_and_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert home_expanded("~/x") == Path("/home/me/x")
    assert home_expanded("a/~/x") == Path("a/~/x")
    with pytest.raises(UserError, match=r"^~nobody-of-this-name/x: there is no home folder for '~nobody-of"):
        home_expanded(Path("~nobody-of-this-name/x"))


def test_cache_folder_is_the_chosen_one_or_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HARNESS_CACHE", "~/chosen")
    assert cache_folder() == tmp_path / "chosen"
    monkeypatch.setenv("HARNESS_CACHE", "~nobody-of-this-name/c")
    with pytest.raises(UserError, match="there is no home folder"):
        cache_folder()
    monkeypatch.setenv("HARNESS_CACHE", "")
    assert cache_folder() == tmp_path / ".cache" / "petl-harness"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "petl-harness"


@pytest.mark.parametrize("home", ["/proc/nonexistent", "~"])
def test_without_a_home_folder_the_cache_is_among_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.delenv("HARNESS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(folders.tempfile, "gettempdir", lambda: str(tmp_path))
    assert cache_folder() == tmp_path / f"petl-harness-{os.getuid()}"
    monkeypatch.setattr(folders.tempfile, "gettempdir", lambda: "/proc/nonexistent")
    with pytest.raises(UserError, match="set HARNESS_CACHE or XDG_CACHE_HOME"):
        cache_folder()
