"""Files are hashed by their bytes, and read again only if they may have changed."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tasks.data import file_digests, files
from tasks.data.file_digests import MEMORY, digest_files
from tests.support.paths import ROOT

HOUR = 3600


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read, in no order."""
    names: list[str] = []
    read = file_digests._read

    def counted(path: str) -> object:
        names.append(Path(path).name)
        return read(path)

    monkeypatch.setattr(file_digests, "_read", counted)
    return names


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Files in two folders, last changed an hour ago."""
    paths = [tmp_path / folder / f"{number}.png" for folder in ("a", "b") for number in range(50)]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"image %03d" % number)
        age(path)
    return paths


def age(path: Path, seconds: float = HOUR) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def describe_images(images: Iterable[Path]) -> dict[str, Any]:
    """What is said of the images of one split."""
    (described,) = files.describe_images({"train": list(map(str, images))}).values()
    return described


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_each_file_is_read_once(cache: Path, images: list[Path], reads: list[str]) -> None:
    expected = {path: sha256(path) for path in images}
    assert digest_files([*images, images[0]]) == expected
    assert sorted(reads) == sorted(path.name for path in images)
    reads.clear()
    assert digest_files(images) == expected
    assert reads == []
    assert [path.name for path in cache.iterdir()] == [MEMORY]


def rewrite(path: Path) -> None:
    path.write_bytes(b"IMAGE 001")  # as many bytes as before


def rewrite_in_the_past(path: Path) -> None:
    rewrite(path)
    age(path, 2 * HOUR)


def put_another_in_its_place(path: Path) -> None:
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"IMAGE 001")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def lengthen(path: Path) -> None:
    status = path.stat()
    path.write_bytes(b"image 0010")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [rewrite, rewrite_in_the_past, put_another_in_its_place, lengthen])
def test_a_changed_file_is_read_again(
    change: Callable[[Path], None], cache: Path, images: list[Path], reads: list[str]
) -> None:
    before = digest_files(images)
    reads.clear()
    change(images[1])
    after = digest_files(images)
    assert reads == ["1.png"]
    assert after == {**before, images[1]: sha256(images[1])}
    assert after != before


def test_digest_of_a_recently_written_file_is_not_cached(
    cache: Path, images: list[Path], reads: list[str]
) -> None:
    """It could be written again with the same size and the same time of change."""
    images[1].write_bytes(b"image 001")
    status = images[1].stat()
    before = digest_files(images)
    reads.clear()
    images[1].write_bytes(b"IMAGE 001")
    os.utime(images[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    after = digest_files(images)
    assert reads == ["1.png"]
    assert after[images[1]] == sha256(images[1]) != before[images[1]]


def test_damaged_or_read_only_digest_cache_only_costs_time(
    cache: Path, images: list[Path], reads: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = digest_files(images)
    (cache / MEMORY).write_bytes(b"no database" * 1000)
    reads.clear()
    assert digest_files(images) == expected
    assert len(reads) == len(images)
    reads.clear()
    assert digest_files(images) == expected  # it has been begun anew
    assert reads == []
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        reads.clear()
        assert digest_files(images) == expected
        assert len(reads) == len(images)


def test_locked_digest_cache_only_costs_time(
    cache: Path, images: list[Path], reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digests, "_PATIENCE", 0.01)
    cache.mkdir()
    other = sqlite3.connect(cache / MEMORY)
    other.execute("BEGIN EXCLUSIVE")
    assert digest_files(images) == {path: sha256(path) for path in images}
    other.rollback()
    other.close()
    reads.clear()
    digest_files(images)
    assert len(reads) == len(images)


def test_several_processes_may_read_at_once(cache: Path, images: list[Path], reads: list[str]) -> None:
    code = (
        "import sys; from pathlib import Path; from tasks.data.file_digests import digest_files\n"
        "print(len(set(digest_files(sorted(Path(sys.argv[1]).glob('?/*.png'))).values())))"
    )
    command = [sys.executable, "-c", code, str(images[0].parent.parent)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == ["100\n"] * 3
    assert digest_files(images) == {path: sha256(path) for path in images}
    assert reads == []


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_counts_as_missing(cache: Path, images: list[Path], tmp_path: Path) -> None:
    """Links that lead nowhere or to themselves, pipes, devices and impossible names, used or not."""
    folder = images[0].parent
    (folder / "dangling.png").symlink_to(tmp_path / "nowhere")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "link.png").symlink_to(images[1])
    os.mkfifo(folder / "pipe.png")
    assert describe_images(images)["images missing"] == 0  # not used
    names = ("dangling.png", "loop.png", "device.png", "pipe.png", f"{'x' * 300}.png", "a\0b.png")
    used = [*(folder / name for name in names), tmp_path / "a\0b" / "1.png"]
    assert digest_files(used) == dict.fromkeys(used)
    assert digest_files([folder / "link.png"]) == {folder / "link.png": sha256(images[1])}
    assert describe_images(used)["images missing"] == len(used)


def test_a_name_in_two_folders_of_which_one_misses_it(cache: Path, images: list[Path]) -> None:
    images[0].unlink()
    both = [images[0], images[50]]
    assert images[0].name == images[50].name
    found = describe_images(both)
    assert (found["images"], found["images missing"]) == (2, 1)
    assert found == describe_images(reversed(both))


def test_images_are_described_by_names_and_bytes(cache: Path, images: list[Path], tmp_path: Path) -> None:
    before = describe_images(images)
    assert (before["images"], before["images missing"]) == (100, 0)
    status = images[1].stat()
    rewrite(images[1])
    assert images[1].stat().st_size == status.st_size
    assert describe_images(images)["image digest"] != before["image digest"]
    images[1].write_bytes(b"image 001")
    assert describe_images(images) == before
    moved = tmp_path / "elsewhere"
    images[0].parent.rename(moved)
    assert describe_images([*moved.iterdir(), *images[50:]]) == before
    missing = describe_images([moved / "0.png", tmp_path / "nowhere" / "0.png", moved])
    assert (missing["images"], missing["images missing"]) == (3, 2)


def test_splits_that_share_a_folder_are_described_apart(
    cache: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is scanned once for all of them."""
    scanned: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: (scanned.append(folder), scan(folder))[1])
    names = [str(path) for path in images]
    found = files.describe_images({"train": names[:30], "val": names[20:60], "test": names[50:]})
    assert sorted(scanned) == [str(images[0].parent), str(images[50].parent)]
    assert [found[split]["images"] for split in ("train", "val", "test")] == [30, 40, 50]
    for split, paths in {"train": images[:30], "val": images[20:60], "test": images[50:]}.items():
        assert found[split] == describe_images(paths)
