"""What is told while something long is running: bars on a terminal, plain lines elsewhere, events in a log.

All that a person sees goes to standard error; results go to standard output. The only module that draws.

A program that watches reads the same from a file, whatever a person wants to see: one JSON object a line,
appended in one piece and at once (docs/logging.md has every event and field). A line that a kill has torn is
closed by the next command, so that it stands alone and a reader can pass it over.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

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

from clusterucb.errors import ClusterUCBError, InputError, StorageError
from clusterucb.version import __version__

Advance = Callable[..., None]
"""`advance(amount, note="", **numbers)`: so much more is done, what it means now, and the same as numbers."""
LINE_SECONDS = 5.0
"""Between two plain lines of a track."""
EVENT_SECONDS = 1.0
"""Between two events of a track in the log."""


class Screen:
    """Where progress is shown.

    Args:
        quiet: show nothing.
        stream: standard error unless given.
        log: where the same is told to programs, also when quiet.
    """

    def __init__(
        self, *, quiet: bool = False, stream: TextIO | None = None, log: EventLog | None = None
    ) -> None:
        self.quiet = quiet
        self._log = log
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._bars: Progress | None = None

    def say(self, line: str) -> None:
        """One plain line."""
        self.tell("message", text=line)
        self._print(line)

    def tell(self, event: str, **fields: Any) -> None:
        """One event for the log (docs/logging.md), of which nothing is shown."""
        if self._log is not None:
            self._log.write(event, **fields)

    @contextmanager
    def track(self, label: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """Show the way to `total` units while the block runs; `done` of them are there already."""
        way = _Way(label, total, unit, done)
        with self._shown(way) as show, self._told(way) as tell:

            def advance(amount: int, note: str = "", **numbers: float) -> None:
                way.done += amount
                way.numbers.update(numbers)
                show(note)
                tell(note)

            yield advance

    @contextmanager
    def _told(self, way: _Way) -> Iterator[Callable[[str], None]]:
        """Tell the log of beginning and end, and now and then how far it is."""
        due, known, finished = _seldom(EVENT_SECONDS), way.known, False
        self.tell("step_begun", **known, done=way.done)

        def tell(note: str) -> None:
            if due():
                self.tell("progress", **known, **way.pace, note=note, numbers=way.numbers)

        try:
            yield tell
            finished = True
        finally:
            self.tell("step_ended", **known, **way.pace, numbers=way.numbers, finished=finished)

    @contextmanager
    def _shown(self, way: _Way) -> Iterator[Callable[[str], None]]:
        if self.quiet:
            yield lambda _note: None
        elif self._console.is_terminal:
            with self._shared_bars() as bars:
                task = bars.add_task(way.label, total=way.total, completed=way.done, unit=way.unit, note="")
                yield lambda note: bars.update(task, completed=way.done, note=note)
        else:
            due = _seldom(LINE_SECONDS)

            def show(note: str) -> None:
                if due():
                    self._print(way.line(note))

            yield show
            self._print(way.line(ended=True))

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

    def _print(self, line: str) -> None:
        if not self.quiet:
            self._console.print(line, markup=False, soft_wrap=True)


class _Way:
    """How far a track has come, and how fast; what was done before it began is no part of its speed."""

    def __init__(self, label: str, total: int, unit: str, done: int) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self.numbers: dict[str, float] = {}
        self._before, self._started = done, time.monotonic()

    @property
    def known(self) -> dict[str, Any]:
        """What the log says of it in every event."""
        return {"step": self.label, "unit": self.unit, "total": self.total}

    @property
    def pace(self) -> dict[str, float | None]:
        """What the log says of it now; the time left where it can be told."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = (self.done - self._before) / seconds
        left = round((self.total - self.done) / rate, 3) if self._before < self.done < self.total else None
        return {"done": self.done, "seconds": round(seconds, 3), "rate": round(rate, 3), "seconds_left": left}

    def line(self, note: str = "", *, ended: bool = False) -> str:
        """The same for a person."""
        pace = self.pace
        left = None if ended else pace["seconds_left"]
        speed = f"{pace['rate']:.1f}/s, {pace['seconds']:.0f} s"
        if left is not None:
            speed += f", about {left:.0f} s left"
        return f"{self.label}: {self.done}/{self.total} {self.unit}, {speed}  {note}".rstrip()


def _seldom(seconds: float) -> Callable[[], bool]:
    """What says yes when it is asked so many seconds after it was made, or after it last said yes."""
    last = time.monotonic()

    def due() -> bool:
        nonlocal last
        if time.monotonic() - last < seconds:
            return False
        last = time.monotonic()
        return True

    return due


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        """Nothing until the speed is known."""
        return Text(f"{task.speed:.1f} {task.fields['unit']}/s" if task.speed else "")


class EventLog:
    """A file of events, appended to, and made with its folder where it is missing.

    Raises InputError where it cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: Any = self.path.open("ab+", buffering=0)
            self._close_torn_line()
        except OSError as error:
            raise InputError(
                f"--json-log {path}: cannot be opened ({error.strerror}); expected a file to append to"
            ) from None

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; numbers that JSON does not have become null.

        Raises StorageError where the disk is full or does not answer. Nothing more is written then.
        """
        if self._file.closed:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        told = json.dumps({"time": now, "event": event, **fields})
        line = json.dumps(json.loads(told, parse_constant=lambda _name: None), ensure_ascii=False)
        try:
            self._file.write(line.encode() + b"\n")
        except OSError as error:
            self._file.close()
            raise StorageError(
                f"--json-log {self.path}: {error.strerror}; make room, or leave --json-log out"
            ) from error

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _close_torn_line(self) -> None:
        if end := self._file.seek(0, os.SEEK_END):
            self._file.seek(end - 1)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")


@contextmanager
def logged(path: str | Path | None, command: str) -> Iterator[EventLog | None]:
    """A log, if there is a path. It tells of the command's beginning and end, and of what ends it early."""
    if path is None:
        yield None
        return
    started, status = time.monotonic(), 0
    with EventLog(path) as log:
        log.write("command_begun", command=command, version=__version__, process=os.getpid())
        try:
            yield log
        except SystemExit as end:
            status = int(end.code or 0)
            raise
        except BaseException as error:
            status = _status(error)
            log.write("error", kind=type(error).__name__, message=str(error))
            raise
        finally:
            seconds = round(time.monotonic() - started, 3)
            log.write("command_ended", command=command, status=status, seconds=seconds)


def _status(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, ClusterUCBError) else 1
