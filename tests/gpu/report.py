"""Lines of the checks on a GPU, for a terminal and for a file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Report:
    """Prints each line as it comes, and remembers which checks have failed."""

    def __init__(self, path: Path | None, seconds: float) -> None:
        """path: file to append the lines to. seconds: sections that would start later are left out."""
        self.path = path
        self.seconds = seconds
        self.failed: list[str] = []
        self.started = time.monotonic()

    def line(self, text: str) -> None:
        """Print one line, with the seconds since the start."""
        stamped = f"{time.monotonic() - self.started:6.1f} s  {text}"
        print(stamped, flush=True)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(stamped + "\n")

    def check(self, name: str, passed: bool, text: str = "") -> None:
        """Print whether a check has passed; remember a failure."""
        self.line(f"{'ok' if passed else 'FAILED':7s}{name}{': ' if text else ''}{text}")
        if not passed:
            self.failed.append(name)

    @contextmanager
    def section(self, title: str) -> Iterator[None]:
        """A part of the checks. An exception fails the section, and the next one runs."""
        self.line(f"--- {title}")
        try:
            yield
        except Exception as error:
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = "" if place is None else f" ({place.tb_frame.f_code.co_filename}:{place.tb_lineno})"
            self.check(title, False, f"{type(error).__name__}: {str(error)[:400]}{where}")

    @property
    def late(self) -> bool:
        """Whether the time for new sections is over."""
        return time.monotonic() - self.started > self.seconds
