"""Every file that a command writes: missing folders are made, links and devices written through, the rest named."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from harness.cli import call
from tests.support.stored_results import store_scores

RESULTS, BASELINE, PLACE = "RESULTS", "BASELINE", "PLACE"
COMMANDS = {
    "table": ("t.md", ("table", RESULTS, "--output", PLACE)),
    "report": ("r.html", ("report", RESULTS, "--output", PLACE)),
    "junit": ("j.xml", ("check", RESULTS, "--baseline", BASELINE, "--junit", PLACE)),
    "baseline": ("b.json", ("check", RESULTS, "--update", "--baseline", PLACE)),
    "profile": (
        "p.csv",
        ("profile", "--backbone", "vilt-mini", "--methods", "classifier", "--output", PLACE),
    ),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("results")
    store_scores(root, {("full", 0): [1.0, 0.0, 1.0, 0.3], ("lora", 0): [1.0, 1.0, 0.0, 0.3]})
    baseline = root / "baseline.json"
    assert call(["check", str(root), "--update", "--baseline", str(baseline)]) == 0
    return {RESULTS: root, BASELINE: baseline}


@pytest.mark.parametrize("command", COMMANDS)
def test_wherever_a_command_writes(
    command: str,
    places: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, words = COMMANDS[command]

    def write(place: Path | str) -> tuple[int, str]:
        capsys.readouterr()
        arguments = [str({**places, PLACE: place}.get(word, word)) for word in words]
        return call(arguments), capsys.readouterr().err

    new, link, device = tmp_path / "missing" / "folders" / name, tmp_path / name, tmp_path / f"device-{name}"
    assert write(new)[0] == 0
    assert new.stat().st_size

    link.symlink_to(tmp_path / "target")
    assert write(link)[0] == 0
    assert link.is_symlink()
    assert (tmp_path / "target").stat().st_size == new.stat().st_size

    if command in ("table", "junit"):  # enough: all have the same writer
        device.symlink_to("/dev/null")
        assert write(device)[0] == 0
        assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)

    (tmp_path / f"folder-{name}").mkdir()
    before = new.read_bytes()
    # The tests may run as root, who may write everything.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    for place, named, message in (
        (tmp_path / f"folder-{name}", "", "is a folder"),
        (f"~nobody-of-this-name/{name}", "", "there is no home folder for '~nobody-of-this-name'"),
        (new / name, new, "Not a directory"),
        (new, new, "cannot be written: Permission denied"),
    ):
        status, error = write(place)
        assert (status, error.count("\n")) == (2, 1), error
        assert error.startswith(f"harness: {named or place}")
        assert message in error
    assert new.read_bytes() == before


def test_other_places_that_cannot_be_written_are_one_line(
    places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, folder, file = str(places[RESULTS]), tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_text("kept")
    for arguments, message in (
        (["evaluate", "lora", "--results", results, "--submission", str(folder)], f"{folder}: is a folder"),
        (
            ["evaluate", "lora", "--results", results, "--submission", f"{file}/x"],
            f"{file}: cannot be written",
        ),
        (["export", "lora", "--results", results, "--output", str(file)], f"{file}: exists and is not empty"),
        (
            ["export", "lora", "--results", results, "--output", "~nobody-of-this-name/x"],
            "~nobody-of-this-name/x: ",
        ),
        (["plot", results, "--output", str(file)], f"{file}: cannot be written: Not a directory"),
    ):
        assert call(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"harness: {message}")
        assert error.count("\n") == 1
    assert file.read_text() == "kept"
