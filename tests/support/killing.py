"""Kills runs at random moments and checks that nothing is lost, damaged or done twice.

    python tests/survival/killing.py --kills 50

prints one line per kill and a summary. Exit status 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness.config.sources import make_settings
from harness.experiment.plan import build_cells, open_testbeds
from harness.experiment.reproduce import figures_of
from harness.experiment.runner import run_cells
from harness.records.record import Record
from harness.records.store import Store
from harness.report.tables import build_tables
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.support.paths import ROOT
from tests.support.reporters import Notes

METHODS = "classifier,lora,das[search_epochs=2,warmup_epochs=1,period=1]"
TIMES = ("latency", "_ms", "search_share", "second")
"""Words in the names of a table's columns that depend on the machine's load."""
STEP = 0.01
"""Seconds between two looks at a process."""


@dataclass
class Figures:
    """The outcome of all kills."""

    kills: int = 0
    rounds: int = 0
    runs: int = 0
    cells: int = 0
    kills_by_moment: dict[str, int] = field(default_factory=dict)
    longest_orphan_s: float = 0.0


class DamageError(AssertionError):
    """A check has failed."""


def command(
    data: Path, results: Path, seeds: int, epochs: int, methods: str = METHODS, jobs: int = 2
) -> list[str]:
    """The command that is killed and issued again."""
    chosen = ["--methods", methods, "--tasks", "vqa", "--seeds", ",".join(map(str, range(seeds)))]
    sizes = ["--epochs", str(epochs), "--batch-size", "16", "--jobs", str(jobs), "--accelerator", "cpu"]
    sizes += ["--checkpoint-minutes", "0.03"]  # every 2 seconds
    return [
        *(sys.executable, "-m", "harness", "run", *chosen, *sizes),
        *("--data-root", str(data), "--results", str(results)),
    ]


def make_data(folder: Path) -> Path:
    """A few questions in the official format."""
    return ensure_vqa(folder, sizes=Sizes(60, 2, 6, 2, 8, 2))


def descendants(process: int) -> Iterator[int]:
    """All descendants of a process (Linux)."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from descendants(child)


def alive(process: int) -> bool:
    """True if the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a run with its output in `log`."""
    with log.open("wb") as output:
        return subprocess.Popen(arguments, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)


def begun(results: Path) -> bool:
    """True if the first cell has started."""
    return (results / "cells").is_dir() and any((results / "cells").iterdir())


def uninterrupted(
    data: Path, results: Path, seeds: int, epochs: int, methods: str
) -> tuple[list[Record], float]:
    """Records of cells that run in this process and are not killed, and the seconds that they take."""
    settings = make_settings(
        methods=methods,
        tasks="vqa",
        seeds=list(range(seeds)),
        epochs=epochs,
        batch_size=16,
        accelerator="cpu",
        data_root=data,
    )
    cells = build_cells(settings, open_testbeds(settings))
    started = time.monotonic()
    return run_cells(cells, Store(results), Notes()), time.monotonic() - started


def kill(process: subprocess.Popen[bytes]) -> float:
    """Send SIGKILL; returns the seconds until the last of the processes has ended."""
    below = list(descendants(process.pid))
    process.send_signal(signal.SIGKILL)
    process.wait()
    started = time.monotonic()
    while any(map(alive, below)):
        if time.monotonic() - started > 60:
            raise DamageError(f"processes {[one for one in below if alive(one)]} outlived the run")
        time.sleep(STEP)
    return time.monotonic() - started


def check(results: Path, expected: dict[str, Record], truth: Store, seen: dict[str, Record]) -> None:
    """Check that every recorded cell is complete and correct, and that none was run again."""
    store = Store(results)
    for record in store.records():
        cell_id = record.cell.id
        if record.status != "finished":
            raise DamageError(f"{cell_id}: recorded as failed: {record.error}")
        if figures_of(record) != figures_of(expected[cell_id]):
            raise DamageError(f"{cell_id}: other figures than without a kill")
        if list(store.predictions(cell_id)) != list(truth.predictions(cell_id)):
            raise DamageError(f"{cell_id}: other predictions than without a kill")
        before = seen.setdefault(cell_id, record)
        if (record.timestamps, record.training) != (before.timestamps, before.training):
            raise DamageError(f"{cell_id}: run again though it was finished")


def table(store: Store) -> list[dict[str, str]]:
    """Rows of the final table without times."""
    return [
        {key: json.dumps(value, default=str) for key, value in row.items() if not is_time(str(key))}
        for each in build_tables(store.records())
        for row in each.frame.to_dict("records")
    ]


def is_time(column: str) -> bool:
    """True if a column of the table depends on the machine's load."""
    return any(word in column.lower() for word in TIMES)


def survive(
    folder: Path, kills: int, seed: int, seeds: int, epochs: int, methods: str = METHODS, jobs: int = 2
) -> Figures:
    """Kill runs until `kills` are reached, each round from an empty folder until its table is there.

    Raises:
        DamageError: a check has failed.
    """
    draw = random.Random(seed)
    data = make_data(folder / "data")
    truth = folder / "truth"
    records, seconds = uninterrupted(data, truth, seeds, epochs, methods)
    expected = {record.cell.id: record for record in records}
    print(f"{len(expected)} cells, {seconds:.1f} s without a kill", flush=True)
    found = Figures(cells=len(expected))
    while found.kills < kills:
        found.rounds += 1
        results = folder / f"round-{found.rounds}"
        seen: dict[str, Record] = {}
        finished = False
        while not finished:
            found.runs += 1
            process = start(command(data, results, seeds, epochs, methods, jobs), results.with_suffix(".log"))
            if found.kills < kills:
                found.longest_orphan_s = max(found.longest_orphan_s, _kill_somewhere(process, draw, seconds))
            status = process.wait()
            finished = status == 0
            if status not in (0, -signal.SIGKILL):
                raise DamageError(f"exit status {status}: {results.with_suffix('.log').read_text()}")
            if status == -signal.SIGKILL:
                found.kills += 1
                moment = _moment(results)
                found.kills_by_moment[moment] = found.kills_by_moment.get(moment, 0) + 1
                print(f"kill {found.kills}: {moment}", flush=True)
            if begun(results):
                check(results, expected, Store(truth), seen)
        if table(Store(results)) != table(Store(truth)):
            raise DamageError("the table is another than without a kill")
        if leftovers := [path for path in results.rglob("*") if path.suffix == ".partial"]:
            raise DamageError(f"left behind: {leftovers}")
    return found


def _kill_somewhere(process: subprocess.Popen[bytes], draw: random.Random, seconds: float) -> float:
    """Kill at a random moment of the cells' work, sometimes during the start of the process."""
    results = Path(process.args[-1])  # type: ignore[index,arg-type]
    if draw.random() > 0.15:  # wait until a cell is in hand
        while process.poll() is None and not _in_hand(results, process.pid):
            time.sleep(STEP)
    until = time.monotonic() + draw.uniform(0, 0.6 * seconds)
    while process.poll() is None and time.monotonic() < until:
        time.sleep(STEP)
    return kill(process) if process.poll() is None else 0.0


def _in_hand(results: Path, process: int) -> bool:
    """True if a process of the run holds a cell; old locks have ids of ended processes."""
    below = {str(one) for one in descendants(process)}
    for lock in (results / "cells").glob("*/lock"):
        with suppress(OSError, IndexError):  # it is just being written or removed
            if lock.read_text().split()[0] in below:
                return True
    return False


def _moment(results: Path) -> str:
    """The state at the moment of the kill."""
    if not begun(results):
        return "before the first cell"
    records = len(list((results / "cells").glob("*/record.json")))
    checkpoints = len(list((results / "cells").glob("*/checkpoint/*.*t*")))
    return f"{records} records, {checkpoints} checkpoints"


def main() -> int:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--seeds", type=int, default=2, help="of each method: three cells a seed")
    parser.add_argument("--epochs", type=int, default=3)
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = survive(Path(folder), chosen.kills, chosen.seed, chosen.seeds, chosen.epochs)
        except DamageError as error:
            print(f"DAMAGE: {error}")
            return 1
    print(f"nothing lost, torn or done twice in {time.monotonic() - started:.0f} s: {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
