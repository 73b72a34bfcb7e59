"""The boundary between the program and the shell: streams that never stop the work, errors of one line each."""

from __future__ import annotations

import errno
import importlib.util
import io
import os
import select
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import UserError, escaped, one_line

_ROOT = Path(__file__).resolve().parents[2]


class _Stream(io.RawIOBase):
    """A standard stream: if it cannot be written, the rest is discarded and `error` says why."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, content: object) -> int:
        """Write all of `content`; returns its length."""
        rest = memoryview(content)  # type: ignore[arg-type]
        length = len(rest)
        while rest and self.error is None:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.error = error
        return length


@contextmanager
def steady_streams() -> Iterator[Callable[[], OSError | None]]:
    """Within this context, printing raises nothing: what a stream cannot encode or take is replaced or discarded.

    Yields a function that returns why standard output could not be written, or None.
    """
    _open_standard_descriptors()
    before = sys.stdout, sys.stderr
    streams: list[_Stream] = []
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        raw = _Stream(descriptor)
        streams.append(raw)
        if stream is None or (getattr(stream, "name", None) == f"<{name}>"):
            if stream is not None:
                stream.flush()
            buffered = io.BufferedWriter(raw)
            line_buffering = name == "stderr" or raw.isatty()
            new = io.TextIOWrapper(buffered, encoding, errors="replace", line_buffering=line_buffering)
            setattr(sys, name, new)

    def failure() -> OSError | None:
        sys.stdout.flush()
        return streams[0].error

    try:
        yield failure
    finally:
        for now in (sys.stdout, sys.stderr):
            now.flush()
        sys.stdout, sys.stderr = before


def _open_standard_descriptors() -> None:
    """Open closed standard descriptors (`>&-`): the next file that is opened would take their place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def run_command(command: Callable[[], object]) -> int:
    """Run a command; returns its exit status, with every error printed on one line.

    0, or what the command returns or exits with; 2 for what the user can fix and for what nobody foresaw, whose
    traceback goes to a file; 130 for Ctrl-C; 1 if standard output was closed or is full, after the work is done.
    """
    with steady_streams() as failure:
        try:
            status = _run(command)
        except UserError as error:
            status = _complain(str(error))
        except KeyboardInterrupt:
            _complain("interrupted; the same command resumes where this one stopped")
            status = 130
        except Exception as error:  # the boundary: nothing may end in a traceback
            status = _complain(_usage(error) or _describe(error))
        unwritten = failure()
        if unwritten is not None and unwritten.errno != errno.EPIPE:
            _complain(f"standard output: cannot be written: {unwritten.strerror}.")
        return 1 if unwritten is not None and status == 0 else status


def _run(command: Callable[[], object]) -> int:
    try:
        require_own_packages()
        status = command()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    return status if isinstance(status, int) else 0


def require_own_packages() -> None:
    """Raise `UserError` if another module on the path has the name of one of this project's packages."""
    for name in ("methods", "tasks"):
        spec = importlib.util.find_spec(name)
        found = (
            None if spec is None else spec.origin or next(iter(spec.submodule_search_locations or ()), None)
        )
        if found is not None and not Path(found).resolve().is_relative_to(_ROOT / name):
            raise UserError(
                f"{found}: has the name of the harness's package '{name}' and is found before it; rename it, or "
                "run the harness from another folder."
            )


def _complain(message: str) -> int:
    print(f"harness: {message}", file=sys.stderr)
    return 2


def _usage(error: Exception) -> str | None:
    """What is wrong with the command line, if typer says so (its classes of errors are not public)."""
    if not hasattr(error, "format_message") or not hasattr(error, "exit_code"):
        return None
    context = getattr(error, "ctx", None)
    message = escaped(" ".join(error.format_message().split())).rstrip(".")
    return message if context is None else f"{message}; see `{context.command_path} --help`"


def _describe(error: Exception) -> str:
    """An exception that nobody turned into a `UserError`, on one line, with its place and the log's path."""
    if isinstance(error, OSError) and error.filename is not None:
        what = f"{escaped(os.fsdecode(error.filename))}: {error.strerror or one_line(error)}"
    else:
        what = one_line(error)
    if isinstance(error, MemoryError):
        what = f"out of memory ({what})"
    return f"{what}{_place(error)}; the traceback is in {_write_log(error)}"


def _place(error: Exception) -> str:
    """The last line of this project or of a plug-in that an error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(_ROOT)] or list(frames)
    if not own:
        return ""
    path = Path(own[-1].filename)
    shown = path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path
    return f" (at {shown}:{own[-1].lineno})"


def _write_log(error: Exception) -> str:
    """Write the traceback to a new file among the temporary ones; returns its path."""
    content = f"$ {shlex.join(sys.argv)}\n{''.join(traceback.format_exception(error))}"
    try:
        descriptor, path = tempfile.mkstemp(prefix="harness-", suffix=".log")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as log:
            log.write(content)
    except OSError as unwritten:
        return f"no file, as {tempfile.gettempdir()} cannot be written ({unwritten.strerror})"
    return path
