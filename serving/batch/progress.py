"""How far a run is: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

INTERVAL = 10.0
"""Seconds between plain lines."""


def rate(value: float, places: int = 1) -> str:
    """Images a second as text: of large pictures, minutes each, two digits all the same."""
    return f"{value:,.{places}f}" if value >= 1 or not value else f"{value:.2g}"


class Progress:
    """Counts images; may be told from several threads.

    Args:
        total: number of files.
        say: takes plain lines.
        terminal: whether to draw a bar instead.
        clock: seconds that only grow.
    """

    def __init__(
        self, total: int, say: Callable[[str], None], terminal: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._say, self._clock = total, say, clock
        self._done = self._resumed = self._errors = 0
        self._guard = threading.Lock()
        self._started = self._told = clock()
        self._bar: Any = None
        self._task: Any = None
        if terminal:
            self._bar, self._task = _bar(total)

    def __enter__(self) -> Self:
        """Shows the bar."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes the bar away, or says the last line."""
        if self._bar is not None:
            self._bar.stop()
        elif self._done:
            self._say(self.line())

    def resumed(self, images: int, errors: int = 0) -> None:
        """Images that an earlier process answered, and how many of them could not be."""
        with self._guard:
            if not self._resumed:
                self._say("going on where an earlier run stopped")
            self._resumed += images
            self._errors += errors
            if self._bar is not None:  # not as an update: what others answered is no speed of this process
                self._bar.reset(self._task, completed=self._resumed + self._done, errors=self._errors)

    def add(self, images: int, errors: int) -> None:
        """Images that were answered now, and how many of them could not be."""
        with self._guard:
            self._done += images
            self._errors += errors
            self._show()
            now = self._clock()
            if self._bar is None and now - self._told >= INTERVAL:
                self._told = now
                self._say(self.line())

    def line(self) -> str:
        """Files done, images a second, time left, and errors so far."""
        seconds = max(self._clock() - self._started, 1e-9)
        speed = self._done / seconds
        left = (self._total - self._resumed - self._done) / speed if speed else 0.0
        return (
            f"{self._resumed + self._done} of {self._total} files, {rate(speed)} a second,"
            f" {_clock_time(left)} left, {self._errors} errors"
        )

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._resumed + self._done, errors=self._errors)


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _bar(total: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Speed(ProgressColumn):
        """Files a second."""

        def render(self, task: Task) -> Text:
            """The column's text."""
            return Text(f"{rate(task.finished_speed or task.speed or 0)}/s")

    bar = RichProgress(
        BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn(), TextColumn("{task.fields[errors]} errors"),
        console=Console(stderr=True), refresh_per_second=2,
    )  # fmt: skip
    return bar, bar.add_task("", total=total, errors=0)
