"""All modules that code imports, directly or not, are found; code that cannot be found is refused."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from harness.digests.code import code_digest, reachable
from harness.errors import UserError

FILES = {
    "third/__init__.py": "from third.setup import VERSION",
    "third/setup.py": "VERSION = 1",
    "third/method.py": "from .near import deep\nclass Shift:\n    def m(self):\n        from third.late import x",
    "third/near.py": "import json, numpy, beside, torch\nfrom . import deep",
    "third/deep/__init__.py": "from ..more import y",
    "third/more.py": "y = 1",
    "third/late.py": "x = 2",
    "third/unused.py": "z = 3",
    "beside.py": "import lone_package.inner",
    "lone_package/inner.py": "w = 4",  # a package without __init__
    "single.py": "import beside\nclass Shift: ...",
}

ALL_OF_THIRD = {
    "third",
    "third.setup",
    "third.method",
    "third.near",
    "third.deep",
    "third.more",
    "third.late",
}
BESIDE = {"beside", "lone_package", "lone_package.inner"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on `sys.path` with a package and modules of a third party."""
    write(tmp_path, FILES)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("third", "beside", "single", "lone_package"):
            del sys.modules[name]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_a_third_party_is_followed_through_its_package_and_folder(folder: Path) -> None:
    assert reachable(["third.method"]).keys() == ALL_OF_THIRD | BESIDE
    assert reachable(["single"]).keys() == {"single"} | BESIDE
    assert "third" not in sys.modules  # it is read, not imported


def test_class_is_covered_by_its_module(folder: Path) -> None:
    shift = importlib.import_module("third.method").Shift
    assert reachable([shift]) == reachable(["third.method"])


def test_other_installed_distributions_are_not_followed(tmp_path: Path) -> None:
    installed = tmp_path / "site-packages"
    write(installed, {**FILES, "third.dist-info/METADATA": "Name: third\nVersion: 1"})
    write(installed, {"third.dist-info/top_level.txt": "third\nlone_package\n"})
    sys.path.insert(0, str(installed))
    try:
        assert reachable(["third.method"]).keys() == ALL_OF_THIRD
        write(installed, {"third/near.py": "import lone_package.inner, beside\nfrom . import deep"})
        assert reachable(["third.method"]).keys() == ALL_OF_THIRD | {"lone_package", "lone_package.inner"}
    finally:
        sys.path.remove(str(installed))


@pytest.mark.parametrize(
    "name", ["third/__init__.py", "third/late.py", "third/more.py", "beside.py", "lone_package/inner.py"]
)
def test_change_in_any_module_changes_the_digest(folder: Path, name: str) -> None:
    before = code_digest(reachable(["third.method"]))
    (folder / name).write_text(f"# a comment\n{FILES[name]}")
    assert code_digest(reachable(["third.method"])) == before
    (folder / name).write_text(f"{FILES[name]}\nchanged = True")
    assert code_digest(reachable(["third.method"])) != before


def test_excluded_modules_and_their_own_imports_are_left_out(folder: Path) -> None:
    assert reachable(["third.method"], ["third.near"]).keys() == {
        *("third", "third.setup", "third.method", "third.late"),
    }
    assert reachable(["third.method"], ["third.deep.*", "beside"]).keys() == ALL_OF_THIRD - {
        *("third.deep", "third.more"),
    }
    assert reachable(["harness.errors"], ["harness"]).keys() == {"harness.errors"}


def test_code_without_source_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError, match=r"module 'no_such.module' cannot be found, so changes .* move it to a module"
    ):
        reachable(["no_such.module"])
    made = type("Made", (), {"__module__": "made_up"})
    monkeypatch.setitem(sys.modules, "made_up", ModuleType("made_up"))
    with pytest.raises(UserError, match="module 'made_up', in which Made is defined, cannot be found"):
        reachable([made])
    monkeypatch.setitem(sys.modules, "third.more", ModuleType("third.more"))
    with pytest.raises(UserError, match=r"module 'third\.more' was not read from a file"):
        reachable(["third.method"])
    monkeypatch.delitem(sys.modules, "third.more")
    (folder / "third" / "more.py").write_text("y = (")
    with pytest.raises(UserError, match=r"more\.py: cannot be read: '\(' was never closed"):
        reachable(["third.method"])


def test_compiled_modules_are_hashed_by_their_bytes(folder: Path) -> None:
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (folder / "third" / "more.py").unlink()
    compiled = folder / "third" / f"more{suffix}"
    compiled.write_bytes(b"\x7fELF")
    importlib.invalidate_caches()
    before = code_digest(reachable(["third.method"]))
    compiled.write_bytes(b"\x7fELF changed")
    assert code_digest(reachable(["third.method"])) != before
