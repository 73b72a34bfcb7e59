"""Display the progress of a run: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn

from harness.errors import counted
from harness.experiment.estimate import duration
from harness.experiment.plan import Cell
from harness.experiment.remaining import Remaining
from harness.process import Interrupts
from harness.records.record import Record

UPDATE_EVERY = 1.0
"""Seconds between two updates of the bar of the whole run."""


SHOW_EVERY = 60.0
"""Seconds between two lines that say how long the run still takes, where there are no bars."""


WIDTH_ELSEWHERE = 110
"""Characters per line where the output is not a terminal."""


def make_console() -> Console:
    """A console for a run's output, as wide as the terminal if there is one."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_ELSEWHERE
    return console


class ProgressReporter:
    """Progress bars on a terminal, lines elsewhere. Every call raises a Ctrl-C that was swallowed before.

    stages: without bars, also print a line when a stage of a cell begins.
    """

    def __init__(
        self,
        console: Console,
        cells: Sequence[Cell],
        interrupts: Interrupts,
        stages: bool = True,
        remaining: Remaining | None = None,
    ) -> None:
        self.console = console
        self.interrupts = interrupts
        self.cells = list(cells)
        self.stages = stages
        self.started = time.monotonic()
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[state]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.overall: TaskID | None = None
        self.current: dict[str, TaskID] = {}
        self.measuring: TaskID | None = None
        self.done = 0
        self.remaining = Remaining({}, 1) if remaining is None else remaining
        self.shown = time.monotonic()

    def __enter__(self) -> ProgressReporter:
        self.bars.start()
        self.overall = self.bars.add_task(counted(len(self.cells), "cell"), total=1.0, state="")
        self._show_overall()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()

    def begin(self, cell: Cell) -> None:
        """A cell begins."""
        self.interrupts.check()

    def end(self, cell: Cell, record: Record | None, note: str) -> None:
        """A cell has ended."""
        self.done += 1
        self._drop_stage(cell)
        self.remaining.end(cell.id)
        self._show_overall()
        if note == "kept":
            return
        score = ""
        if record is not None and record.status == "finished" and record.primary is not None:
            score = f", {cell.testbed.task.primary_metric} {record.primary:.2f}"
            if record.search is not None:
                score += f", {record.search.summary}"
        elif record is not None and record.error:
            score = f": {record.error}"
        self.console.print(f"{self._clock()} {name_of(cell)}: {note}{score}", markup=False, soft_wrap=True)

    def stage(self, cell: Cell, name: str, total: int) -> None:
        """A stage of a cell begins."""
        self.interrupts.check()
        self._drop_stage(cell)
        self.remaining.stage(cell.id, name, total)
        self.current[cell.id] = self.bars.add_task(f"{name_of(cell)}: {name}", total=total, state="")
        if self.stages and not self.console.is_terminal:
            self.console.print(f"{self._clock()} {name_of(cell)}: {name}", markup=False, soft_wrap=True)

    def advance(self, cell: Cell, count: int) -> None:
        """Examples are done. Without bars, the time left is printed about once a minute."""
        self.interrupts.check()
        self.remaining.advance(cell.id, count)
        now = time.monotonic()
        if self.console.is_terminal:
            if now - self.shown >= UPDATE_EVERY:
                self.shown = now
                self._show_overall()
        elif now - self.shown >= SHOW_EVERY and (left := self.remaining.seconds()) > 0:
            self.shown = now
            self.note(f"about {duration(left)} left")
        if cell.id in self.current:
            self._move(self.current[cell.id], count)

    def epoch(self, cell: Cell, figures: Mapping[str, float]) -> None:
        """An epoch is over; nothing is shown, its figures are in the learning curve."""
        self.interrupts.check()

    def note(self, text: str) -> None:
        """Show one line that belongs to no cell."""
        self.interrupts.check()
        self.console.print(f"{self._clock()} {text}", markup=False, soft_wrap=True)

    def latency(self, done: int, total: int) -> None:
        """`done` of `total` latency measurements are done."""
        self.interrupts.check()
        if self.measuring is None:
            self.measuring = self.bars.add_task("latency", total=total, state="")
        self._move(self.measuring, done - self._task(self.measuring).completed)

    def _show_overall(self) -> None:
        """Show the share of the run's time that has passed, and how long it still takes."""
        if self.overall is None:
            return
        passed, left = time.monotonic() - self.started, self.remaining.seconds()
        ended = self.done == len(self.cells)
        share = 1.0 if ended or passed + left <= 0 else passed / (passed + left)
        state = f"{self.done} of {len(self.cells)} done" + (
            f", about {duration(left)} left" if left > 0 else ""
        )
        self.bars.update(self.overall, completed=share, state=state)

    def _move(self, bar: TaskID, count: float) -> None:
        """Advance a bar and the numbers beside it."""
        task = self._task(bar)
        done = task.completed + count
        self.bars.update(bar, completed=done, state=f"{done:,.0f}/{task.total or 0:,.0f}")

    def _task(self, bar: TaskID) -> Task:
        return next(task for task in self.bars.tasks if task.id == bar)

    def _drop_stage(self, cell: Cell) -> None:
        if cell.id in self.current:
            self.bars.remove_task(self.current.pop(cell.id))

    def _clock(self) -> str:
        passed = int(time.monotonic() - self.started)
        return f"{passed // 60:3d}:{passed % 60:02d}"


def name_of(cell: Cell) -> str:
    """`lora on vqa, seed 0`."""
    return f"{cell.label} on {cell.testbed.task.name}, seed {cell.seed}"
