"""What else the machine was doing during a measurement."""

from __future__ import annotations

import os
import time
from pathlib import Path

STATISTICS = Path("/proc/stat")
"""Linux's count of processor time, in ticks."""

BUSY_RATIO = 1.25
"""Ratio of p90 to median latency above which a measurement counts as disturbed; on a quiet machine it is about 1.03."""

TOLERANCE = 0.25
"""Processor cores that the system itself may use on a quiet machine."""


class OtherPrograms:
    """Counts the processor time of other programs from its creation on."""

    def __init__(self) -> None:
        self._start = _now()

    def cores(self) -> float | None:
        """Cores that other programs have kept busy since then, on average; None where the system does not tell."""
        start, end = self._start, _now()
        if start is None or end is None or end[0] <= start[0]:
            return None
        seconds, busy, own = (after - before for after, before in zip(end, start, strict=True))
        return max(0.0, (busy - own) / seconds)


def disturbed(others: float | None, threads: int, cores: int | None) -> bool:
    """Whether other programs left fewer cores than a measurement with `threads` threads needs."""
    return others is not None and cores is not None and others + threads > cores + TOLERANCE


def _now() -> tuple[float, float, float] | None:
    """Wall clock, busy time of all cores, and processor time of this process, in seconds."""
    try:
        ticks = [
            int(number) for number in STATISTICS.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        ]
    except (OSError, ValueError):
        return None
    idle = sum(ticks[3:5])  # idle, and waiting for a disk
    busy = sum(ticks[:8]) - idle  # what follows is part of the first two
    return time.perf_counter(), busy / os.sysconf("SC_CLK_TCK"), time.process_time()
