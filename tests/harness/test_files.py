from __future__ import annotations

import errno
import gzip
import hashlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.files import (
    read_bytes,
    read_csv,
    read_json,
    read_json_lines,
    read_text,
    read_toml,
    require_writable,
    write_atomically,
)

READERS = [read_json, read_json_lines, read_csv, read_toml]
BOM = "\ufeff".encode()


def write(folder: Path, content: bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("start", [b"", BOM])
def test_every_format_is_read_plain_or_gzipped_and_with_a_byte_order_mark(
    tmp_path: Path, pack: Callable[[bytes], bytes], start: bytes
) -> None:
    def place(text: str) -> Path:
        return write(tmp_path, pack(start + text.encode()))

    assert read_json(place('{"ä": [1]}')).value == {"ä": [1]}
    assert read_json_lines(place("1\n\n2\r\n")).value == [
        (f"{tmp_path}/file: line 1", 1),
        (f"{tmp_path}/file: line 3", 2),
    ]
    path = place("a,1\r\rb,2\r")
    found = read_csv(path)
    assert found.value == [(f"{path}: line 1", ["a", "1"]), (f"{path}: line 3", ["b", "2"])]
    assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_toml(place("a = 1")).value == {"a": 1}


def test_lone_surrogates_are_replaced_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path, rb'{"a\udc00": ["\ud83d\ude00", "x\ud800\ud800", 1], "b": "\\ud800"}')
    found = read_json(path)
    assert found.value == {"a\ufffd": ["😀", "x\ufffd\ufffd", 1], "b": "\\ud800"}
    assert found.replaced == 3
    assert read_json_lines(path).replaced == 3
    raw = read_text(write(tmp_path, b"x\xed\xa0\x80y"))
    assert (raw.value, raw.replaced) == ("x\ufffdy", 1)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\x00", "byte 2: is a NUL byte"),
        (b"\xff\xfea\x00", "is encoded as UTF-16"),
        (b"a\n\xc3(", "byte 3: is not valid UTF-8"),
        (b"\x1f\x8bxx", "cannot be decompressed"),
        (gzip.compress(b"{}" * 99, mtime=0)[:-9], "cannot be decompressed"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a git-lfs pointer"),
        (b"\n<!DOCTYPE html><p>", "is an HTML page"),
    ],
)
def test_file_that_is_not_text_is_named(
    tmp_path: Path, read: Callable[[Path], object], content: bytes, message: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=f"^{path}: {message}"):
        read(path)


LONG = "9" * 5000
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_json, "", ": is empty"),
        (read_json, " \n", ": is empty"),
        (read_json, '{\n "a": x}', ": line 2, column 7: not valid JSON"),
        (read_json, f'[\n{{"a": {LONG}}}]', ": line 2: an integer has more than 4,300 digits"),
        (read_json, DEEP, ": is nested too deeply"),
        (read_json, "[NaN]", ": NaN is not a number in JSON"),
        (read_json_lines, "1\n{", ": line 2, column 2: not valid JSON"),
        (read_json_lines, f"1\n{LONG}", ": line 2: an integer has more than 4,300 digits"),
        (read_json_lines, f"1\n{DEEP}", ": line 2: is nested too deeply"),
        (read_toml, "a = 1\nb\nc = 1", ": not valid TOML: .*line 2"),
        (read_toml, f"a = 1\nb = {LONG}", ": line 2: an integer has more than 4,300 digits"),
        (read_toml, f"a = {DEEP}", ": is nested too deeply"),
        (read_csv, "a\n" + "b" * 200_000, ": line 2: not valid CSV: field larger"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_malformed_content_is_named_with_its_place(
    tmp_path: Path, read: Callable[[Path], object], text: str, message: str
) -> None:
    path = write(tmp_path, text.encode())
    with pytest.raises(UserError, match=f"^{path}{message}"):
        read(path)


@pytest.mark.timeout(20)
def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name, message in {
        ".": "is a folder",
        "pipe": "is not a regular file",
        "dangling": "links to nowhere, which does not exist",
        "loop": "cannot be read: Too many levels",
        "missing": "no such file",
        "n" * 300: "cannot be read: File name too long",
        "a\x00b": "cannot be read: embedded null byte",
    }.items():
        with pytest.raises(UserError, match=message):
            read_bytes(tmp_path / name)
    with pytest.raises(UserError, match="is not a regular file"):
        read_bytes(Path("/dev/zero"))


def test_interrupted_write_leaves_the_old_file_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.md"
    write_atomically(path, b"old")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EROFS, "cannot be written"),
        (errno.EIO, "cannot be written"),
        (errno.ESTALE, "cannot be written"),
    ],
)
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_full_or_read_only_disk_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, message: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(UserError, match=f"^{tmp_path / 'file'}: {message}"):
        write_atomically(tmp_path / "file", b"content")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_created_and_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    assert write_atomically(tmp_path / "a" / "b" / "t.md", b"x").read_bytes() == b"x"
    with pytest.raises(UserError, match="is a folder; name a file"):
        write_atomically(tmp_path / "a", b"x")
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        write_atomically(tmp_path / "a" / "b" / "t.md" / "c", b"x")


def test_a_link_is_written_through_and_keeps_its_targets_permissions(tmp_path: Path) -> None:
    target = write(tmp_path, b"old", "target")
    target.chmod(0o640)
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "new").symlink_to(Path("sub") / "later")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    (tmp_path / "sub").mkdir()
    write_atomically(tmp_path / "new", b"new")
    assert (tmp_path / "sub" / "later").read_bytes() == b"new"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="Too many levels"):
        write_atomically(tmp_path / "loop", b"new")


def test_a_file_without_permission_to_write_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, b"old")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may write everything
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


@pytest.mark.timeout(20)
def test_devices_and_pipes_are_written_and_not_replaced(tmp_path: Path) -> None:
    write_atomically(Path("/dev/null"), b"x")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(UserError, match="no space left on the disk"):
        write_atomically(Path("/dev/full"), b"x")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="cannot be written: No such device"):
        write_atomically(pipe, b"nobody reads this")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    while not read and reader.is_alive():
        try:
            write_atomically(pipe, b"x" * 100_000)
        except UserError:  # the reader has not opened it yet
            continue
        reader.join()
    assert read == [b"x" * 100_000]


def test_standard_output_that_is_a_file_is_continued(tmp_path: Path) -> None:
    code = (
        "import pathlib; from harness.files import write_atomically; print('before', flush=True);"
        "write_atomically(pathlib.Path('/dev/stdout'), b'table\\n'); print('after')"
    )
    with (tmp_path / "out").open("ab") as output:
        subprocess.run([sys.executable, "-c", code], stdout=output, check=True)
    assert (tmp_path / "out").read_text() == "before\ntable\nafter\n"


def test_a_place_is_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_writable(tmp_path / "a" / "new")
    assert (tmp_path / "a").is_dir()
    assert not (tmp_path / "a" / "new").exists()
    require_writable(Path("/dev/null"))
    with pytest.raises(UserError, match="is a folder; name a file"):
        require_writable(tmp_path / "a")
    with pytest.raises(UserError, match="Not a directory"):
        require_writable(write(tmp_path, b"") / "x")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="new: cannot be written: Permission denied"):
        require_writable(tmp_path / "a" / "new")
