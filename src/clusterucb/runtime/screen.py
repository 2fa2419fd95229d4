"""What a person sees while something long is running: a bar on a terminal, a plain line elsewhere.

Everything goes to standard error; results go to standard output. The only module that draws. A program that
watches reads the same from a log of events, which is written whatever a person wants to see.

What a command tells a program that watches it: one JSON object a line, appended to a file.

Every event and field is in docs/logging.md. A line is written in one piece and at once; a line that a kill
has torn is closed by the next command, so that it stands alone and a reader can pass it over.
"""

from __future__ import annotations

import json
import math
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
        with self._shown(label, total, unit, done) as show, self._told(label, total, unit, done) as tell:

            def advance(amount: int, note: str = "", **numbers: float) -> None:
                show(amount, note)
                tell(amount, note, numbers)

            yield advance

    @contextmanager
    def _shown(self, label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
        if self.quiet:
            yield lambda _amount, _note: None
        elif self._console.is_terminal:
            with self._bar(label, total, unit, done) as advance:
                yield advance
        else:
            with self._lines(label, total, unit, done) as advance:
                yield advance

    @contextmanager
    def _told(self, label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
        if self._log is None:
            yield lambda _amount, _note, _numbers: None
            return
        pace, last, known = (
            _Pace(total, done),
            time.monotonic(),
            {"step": label, "unit": unit, "total": total},
        )
        seen: dict[str, float] = {}
        self.tell("step_begun", **known, done=done)

        def advance(amount: int, note: str, numbers: dict[str, float]) -> None:
            nonlocal last
            pace.done += amount
            seen.update(numbers)
            if time.monotonic() - last >= EVENT_SECONDS:
                last = time.monotonic()
                self.tell("progress", **known, **pace.fields(), note=note, numbers=seen)

        finished = False
        try:
            yield advance
            finished = True
        finally:
            self.tell("step_ended", **known, **pace.fields(), numbers=seen, finished=finished)

    def _print(self, line: str) -> None:
        if not self.quiet:
            self._console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def _bar(self, label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
        with self._shared_bars() as bars:
            task = bars.add_task(label, total=total, completed=done, unit=unit, note="")

            def advance(amount: int, note: str) -> None:
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
    def _lines(self, label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
        pace, last = _Pace(total, done), time.monotonic()

        def line(note: str, *, ended: bool = False) -> None:
            left = f", about {pace.left:.0f} s left" if pace.left is not None and not ended else ""
            text = f"{label}: {pace.done}/{total} {unit}, {pace.rate:.1f}/s, {pace.seconds:.0f} s{left}"
            self._print(f"{text}  {note}".rstrip())

        def advance(amount: int, note: str) -> None:
            nonlocal last
            pace.done += amount
            if time.monotonic() - last >= LINE_SECONDS:
                last = time.monotonic()
                line(note)

        yield advance
        line("", ended=True)


class _Pace:
    """How far a track has come, and how fast; what was done before it began is no part of its speed."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done = total, done
        self._before, self._started = done, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return max(time.monotonic() - self._started, 1e-9)

    @property
    def rate(self) -> float:
        """Units a second."""
        return (self.done - self._before) / self.seconds

    @property
    def left(self) -> float | None:
        """Seconds to the end, where they can be told."""
        return (self.total - self.done) / self.rate if self._before < self.done < self.total else None

    def fields(self) -> dict[str, float | None]:
        """As the log has them."""
        left = None if self.left is None else round(self.left, 3)
        return {
            "done": self.done,
            "seconds": round(self.seconds, 3),
            "rate": round(self.rate, 3),
            "seconds_left": left,
        }


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        """Nothing until the speed is known."""
        return Text(f"{task.speed:.1f} {task.fields['unit']}/s" if task.speed else "")


class EventLog:
    """A file of events.

    Args:
        path: appended to; made with its folder where it is missing.

    Raises:
        InputError: it cannot be opened.
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

        Raises:
            StorageError: the disk is full or does not answer. Nothing more is written then.
        """
        if self._file.closed:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps(_finite({"time": now, "event": event, **fields}), ensure_ascii=False)
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
def logged(path: str | Path, command: str) -> Iterator[EventLog]:
    """A log that tells of the command's beginning and end, and of the error that ends it."""
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


def _finite(value: Any) -> Any:
    """`value` with null in the place of infinities and of what is not a number."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
