"""Process settings: memory allocation, signals, and output of libraries."""

from __future__ import annotations

import ctypes
import multiprocessing.util
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

_M_TRIM_THRESHOLD = -1


_M_MMAP_THRESHOLD = -3


_LARGE = 2**31 - 1


def keep_freed_memory() -> bool:
    """Raise glibc's thresholds for mapping and trimming, so that freed memory is reused; False without glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGE))


class Interrupts:
    """Within this context a Ctrl-C raises KeyboardInterrupt at once, and every later `check` raises it again.

    Only the main thread handles signals. In other threads, and if Ctrl-C is ignored or already has a handler, this
    changes nothing.
    """

    def __init__(self) -> None:
        self.came = False
        self._ours = False

    def __enter__(self) -> Self:
        on_main_thread = threading.current_thread() is threading.main_thread()
        if on_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._ours = True
        return self

    def __exit__(self, *exception: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._ours = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise a Ctrl-C that a library may have swallowed.

        Raises:
            KeyboardInterrupt: there was a Ctrl-C.
        """
        if self.came:
            raise KeyboardInterrupt


TERMINATED = 128 + signal.SIGTERM
"""Exit status of a run that SIGTERM has ended."""


class StopRequestedError(Exception):
    """SIGTERM has asked this process to stop; its state is saved."""


class Requests:
    """Requests that signals make to the cell in this process: to save its state, or to save it and stop.

    Signals only set a flag; training looks at it after every step, evaluation after every batch.
    """

    def __init__(self) -> None:
        self.save = False
        self.stop = False
        self._listening = False

    def check(self) -> None:
        """Raises `StopRequestedError` if a stop was requested."""
        if self.stop:
            raise StopRequestedError("stopped by SIGTERM")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block, SIGTERM requests a stop and SIGUSR1 a save.

        Only the main thread handles signals. In other threads, and inside another such block, this changes nothing.
        """
        if self._listening or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._listening = True
        handlers = {signal.SIGTERM: self._ask_to_stop, signal.SIGUSR1: self._ask_to_save}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._listening = self.save = self.stop = False

    def _ask_to_stop(self, *_: object) -> None:
        self.stop = True

    def _ask_to_save(self, *_: object) -> None:
        self.save = True


REQUESTS = Requests()
"""The requests to this process."""


_LONGEST_FOLDER = 60
"""Characters of a folder for sockets, whose paths have at most 107 with their names."""


def shorten_socket_paths() -> None:
    """Keep `multiprocessing`'s sockets in a short folder if that for temporary files has too long a path."""
    chosen = tempfile.gettempdir()
    if len(os.fsencode(chosen)) <= _LONGEST_FOLDER:
        return
    for short in ("/tmp", "/var/tmp", "/dev/shm"):
        if os.access(short, os.W_OK):
            tempfile.tempdir = short
            try:
                multiprocessing.util.get_temp_dir()  # is made once, and removed at the end of the process
            finally:
                tempfile.tempdir = chosen
            return


def prepare_process() -> None:
    """Prepare a process for running cells: set memory allocation, and silence hints of libraries."""
    keep_freed_memory()
    shorten_socket_paths()
    import logging

    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module="lightning_fabric")
    for name in (
        "lightning_fabric",
        "lightning_fabric.utilities.seed",
        "transformers",
        "adapters",
        "matplotlib",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
