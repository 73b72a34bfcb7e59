"""Keeps freed memory in the process instead of handing it back to the system after every tensor.

glibc gives large blocks back at once, and the next tensor of that size faults its pages in again; with
the small models of the embedded benchmark a fifth of the processor's time went there.
"""

from __future__ import annotations

import ctypes
import sys

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
