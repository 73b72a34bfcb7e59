"""Read and write files: one reader for each format, one writer, and every problem a `UserError` naming file and place.

Readers take regular files only, plain or gzipped (recognised by content), with or without a byte-order mark. The
writer replaces a file atomically, so that it is complete or unchanged.
"""

from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import io
import json
import os
import re
import stat
import tomllib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from harness.errors import UserError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Content(Generic[Value]):
    """Content of a file.

    digest: SHA-256 (hex) of the file's bytes on disk.
    replaced: number of lone surrogates in its texts, each of which was read as U+FFFD.
    """

    value: Value
    digest: str
    replaced: int = 0


Line = tuple[str, Any]
"""Position of a line or row as messages name it (`dev.json: line 3`), and its value."""


_GZIP = b"\x1f\x8b"
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


_LONG_INTEGER = re.compile(r"\d{4301}")
"""Python converts at most 4,300 digits."""


_NOT_THE_FILE = (
    (
        re.compile(rb"\s*version https://git-lfs"),
        "a git-lfs pointer, not the file itself; run `git lfs pull`",
    ),
    (
        re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE),
        "an HTML page, not the file; download it again",
    ),
)


def require_regular(path: Path) -> None:
    """Raise `UserError` if there is no file at `path`, or it is a folder, a pipe or a device."""
    with _reading(path):
        mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a folder; expected a file.")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: is not a regular file.")


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file, as they are on disk.

    Raises:
        UserError: there is no such file, it cannot be read, or it is a folder, a pipe or a device.
    """
    require_regular(path)
    with _reading(path):
        return path.read_bytes()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        if path.is_symlink():
            raise UserError(f"{path}: links to {path.readlink()}, which does not exist.") from None
        raise UserError(f"{path}: no such file.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def read_text(path: Path) -> Content[str]:
    """The text of a UTF-8 file, without its byte-order mark.

    Raises:
        UserError: it cannot be read (see `read_bytes`), is a git-lfs pointer, a web page or not text.
    """
    raw = read_bytes(path)
    digest = hashlib.sha256(raw).hexdigest()
    if raw.startswith(_GZIP):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: cannot be decompressed: {error}.") from None
    if (instead := not_the_file(raw)) is not None:
        raise UserError(f"{path}: is {instead}.")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: is encoded as UTF-16; save it as UTF-8.")
    if (position := raw.find(0)) >= 0:
        raise UserError(f"{path}: byte {position + 1}: is a NUL byte; this is not a text file.")
    try:
        return Content(raw.decode("utf-8-sig"), digest)
    except UnicodeDecodeError as error:
        with suppress(UnicodeDecodeError):
            text, replaced = without_surrogates(raw.decode("utf-8-sig", "surrogatepass"))
            return Content(text, digest, replaced)
        raise UserError(f"{path}: byte {error.start + 1}: is not valid UTF-8.") from None


def not_the_file(raw: bytes) -> str | None:
    """What a file is instead of the one expected, if its download failed: a git-lfs pointer or an HTML page."""
    start = raw[:256]
    return next((what for pattern, what in _NOT_THE_FILE if pattern.match(start)), None)


def without_surrogates(text: str) -> tuple[str, int]:
    """`text` with lone surrogates, which cannot be written to any file, replaced by U+FFFD, and their number."""
    return _SURROGATE.subn("\ufffd", text)


def read_json(path: Path) -> Content[Any]:
    """The value in a JSON file.

    Raises:
        UserError: it cannot be read (see `read_text`), or is not JSON (with line and column).
    """
    text = read_text(path)
    if not text.value.strip():
        raise UserError(f"{path}: is empty; expected JSON.")
    value, replaced = parse_json(text.value, str(path))
    return Content(value, text.digest, text.replaced + replaced)


def read_json_lines(path: Path) -> Content[list[Line]]:
    """The values in a JSON-lines file with their positions, without blank lines.

    Raises:
        UserError: it cannot be read (see `read_text`), or a line is not JSON (with line and column).
    """
    text = read_text(path)
    lines: list[Line] = []
    total = text.replaced
    # Not splitlines(): it also splits at U+2028 and similar characters, which JSON strings may contain.
    for number, line in enumerate(_with_line_feeds(text.value).split("\n"), start=1):
        if line.strip():
            value, replaced = parse_json(line, str(path), number)
            lines.append((f"{path}: line {number}", value))
            total += replaced
    return Content(lines, text.digest, total)


def parse_json(text: str, place: str, line: int | None = None) -> tuple[Any, int]:
    """The value of a JSON text, and the number of lone surrogates in it that were replaced by U+FFFD.

    place: what messages begin with.
    line: number of the text's only line; None: the text is a whole file.

    Raises:
        UserError: it is not JSON, or is nested too deeply or has too long an integer to be converted.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = f"{place}: line {line or error.lineno}, column {error.colno}"
        raise UserError(f"{where}: not valid JSON: {error.msg}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}{_cause(error, text, line)}") from None
    return _replace_surrogates(value) if _ESCAPED_SURROGATE.search(text) else (value, 0)


def read_csv(path: Path) -> Content[list[Line]]:
    """The rows of a CSV file with their positions, as lists of texts; lines may end in LF, CR LF or CR.

    Blank lines are left out. A header is a row like the others.

    Raises:
        UserError: it cannot be read (see `read_text`), or a row is not CSV.
    """
    text = read_text(path)
    reader = csv.reader(io.StringIO(_with_line_feeds(text.value)))
    rows: list[Line] = []
    try:
        rows += ((f"{path}: line {reader.line_num}", row) for row in reader if any(map(str.strip, row)))
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: not valid CSV: {error}.") from None
    return Content(rows, text.digest, text.replaced)


def read_toml(path: Path) -> Content[dict[str, Any]]:
    """The table in a TOML file.

    Raises:
        UserError: it cannot be read (see `read_text`), or is not TOML (with the line).
    """
    text = read_text(path)
    try:
        return Content(tomllib.loads(text.value), text.digest, text.replaced)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}{_cause(error, text.value)}") from None


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _cause(error: Exception, text: str, line: int | None = None) -> str:
    """Why a text could not be converted although its syntax is right, after the line where that is known."""
    reason = "is nested too deeply to be read" if isinstance(error, RecursionError) else str(error)
    if long := _LONG_INTEGER.search(text):
        line = line or 1 + text.count("\n", 0, long.start())
        reason = "an integer has more than 4,300 digits"
    return f"{'' if line is None else f': line {line}'}: {reason}."


def _replace_surrogates(value: Any) -> tuple[Any, int]:
    """A JSON value with lone surrogates in its texts and keys replaced, and their number."""
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        items = [_replace_surrogates(item) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    if isinstance(value, dict):
        pairs = [(without_surrogates(key), _replace_surrogates(item)) for key, item in value.items()]
        return {key: item for (key, _), (item, _) in pairs}, sum(m + n for (_, m), (_, n) in pairs)
    return value, 0


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file, complete and flushed to the disk, or leave what was there. Missing folders are created.

    A link's target is replaced, not the link. What is no regular file (a device, a pipe) is written to as it is.

    Raises:
        UserError: the path is a folder or cannot be written, or the disk is full.
    """
    with disk_errors(path):
        make_folder(path.parent)
        existing = _status(path)
        if existing is not None and stat.S_ISDIR(existing.st_mode):
            raise UserError(f"{path}: is a folder; name a file.")
        if existing is not None and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if (existing is not None and not stat.S_ISREG(existing.st_mode)) or _is_a_descriptor(path):
            _write(
                path, content, os.O_NONBLOCK | os.O_APPEND
            )  # a pipe that nobody reads is an error, not a wait
            return path
        target = Path(os.path.realpath(path))
        partial = target.with_name(f".{target.name[:100]}.{os.getpid()}.partial")
        try:
            _write(partial, content, os.O_CREAT | os.O_TRUNC)
            if existing is not None:
                partial.chmod(stat.S_IMODE(existing.st_mode))
            partial.replace(target)
            _flush(target.parent)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
    return path


def make_folder(path: Path) -> Path:
    """Create a folder and those above it, if they are missing.

    Raises:
        UserError: it cannot be created, or a file has its name.
    """
    with disk_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
    return path


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system in writing `path` into a `UserError` of one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path}: no space left on the disk; free some and run again.") from error
        raise UserError(f"{path}: cannot be written: {error.strerror or error}.") from error
    except ValueError as error:  # a NUL in the path
        if "null" not in str(error):
            raise
        raise UserError(f"{path}: cannot be written: {error}.") from error


def _status(path: Path) -> os.stat_result | None:
    """Status of what `path` leads to; None if there is nothing yet."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _is_a_descriptor(path: Path) -> bool:
    """True for `/dev/stdout` and the like, whose file another program may be writing as well."""
    return str(path.absolute()).startswith(("/dev/", "/proc/")) and path.exists()


def _write(path: Path, content: bytes, flags: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | flags, 0o666)
    try:
        os.set_blocking(descriptor, True)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        with _unsupported():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush(folder: Path) -> None:
    """Flush a folder, so that its entry for a new file is on the disk."""
    with _unsupported():
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _unsupported() -> Iterator[None]:
    """Devices, pipes and some network file systems cannot be flushed."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


def require_writable(path: Path) -> None:
    """Check, before long work whose result goes there, that a file can be written; missing folders are made.

    Raises:
        UserError: it cannot.
    """
    make_folder(path.parent)
    with disk_errors(path):
        existing = _status(path)
        if existing is not None and stat.S_ISDIR(existing.st_mode):
            raise UserError(f"{path}: is a folder; name a file.")
        if not os.access(path if existing is not None else path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
