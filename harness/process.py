"""Settings of a process: its memory, its signals, and what libraries may print."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import warnings
from types import FrameType
from typing import Self

_M_TRIM_THRESHOLD = -1


_M_MMAP_THRESHOLD = -3


_LARGE = 2**31 - 1


def keep_freed_memory() -> bool:
    """Raise glibc's thresholds for mapping and trimming; False where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGE))


class Interrupts:
    """While entered, a Ctrl-C is raised at once as always, and again by every later `check`.

    Signals belong to the main thread: elsewhere, and where Ctrl-C is ignored or somebody else's already, this
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
        """Raise what may have got lost.

        Raises:
            KeyboardInterrupt: there was a Ctrl-C.
        """
        if self.came:
            raise KeyboardInterrupt


def prepare_process() -> None:
    """Settings of a process that runs cells: memory, and no words of libraries to their own users."""
    keep_freed_memory()
    import logging

    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module="lightning_fabric")
    for name in ("lightning_fabric", "lightning_fabric.utilities.seed", "transformers", "adapters"):
        logging.getLogger(name).setLevel(logging.ERROR)
