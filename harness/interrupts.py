"""Ctrl-C that cannot get lost.

Python raises `KeyboardInterrupt` wherever the program happens to be, and where that is a callback whose
exceptions are ignored (a finaliser, a weak reference's), it prints the exception and goes on.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Self


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
