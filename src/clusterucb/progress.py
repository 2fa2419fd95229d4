"""What a person sees while something long is running: a bar on a terminal, a plain line elsewhere.

Everything goes to standard error; results go to standard output. The only module that draws.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["Advance", "Screen"]

Advance = Callable[..., None]
"""`advance(amount, note="")`: so much more is done, and what it means now."""

LINE_SECONDS = 5.0


class Screen:
    """Where progress is shown.

    Args:
        quiet: show nothing.
        stream: standard error unless given.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.quiet = quiet
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._bars: Progress | None = None

    def say(self, line: str) -> None:
        """One plain line."""
        if not self.quiet:
            self._console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """Show the way to `total` units while the block runs."""
        if self.quiet:
            yield lambda _amount, note="": None
        elif self._console.is_terminal:
            with self._bar(label, total, unit) as advance:
                yield advance
        else:
            with self._lines(label, total, unit) as advance:
                yield advance

    @contextmanager
    def _bar(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        with self._shared_bars() as bars:
            task = bars.add_task(label, total=total, unit=unit, note="")

            def advance(amount: int, note: str = "") -> None:
                bars.update(task, advance=amount, note=note)

            yield advance

    @contextmanager
    def _shared_bars(self) -> Iterator[Progress]:
        """One live display, as a terminal can hold no second: a track inside another adds its bar to it."""
        if self._bars is not None:
            yield self._bars
            return
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console) as self._bars:
            try:
                yield self._bars
            finally:
                self._bars = None

    @contextmanager
    def _lines(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        started = time.monotonic()
        last = started
        done = 0

        def line(note: str, *, ended: bool = False) -> None:
            seconds = max(time.monotonic() - started, 1e-9)
            rate = done / seconds
            left = f", about {(total - done) / rate:.0f} s left" if 0 < done < total and not ended else ""
            text = f"{label}: {done}/{total} {unit}, {rate:.1f}/s, {seconds:.0f} s{left}"
            self.say(f"{text}  {note}".rstrip())

        def advance(amount: int, note: str = "") -> None:
            nonlocal done, last
            done += amount
            if time.monotonic() - last >= LINE_SECONDS:
                last = time.monotonic()
                line(note)

        yield advance
        line("", ended=True)


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        """Nothing until the speed is known."""
        return Text(f"{task.speed:.1f} {task.fields['unit']}/s" if task.speed else "")
