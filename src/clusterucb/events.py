"""What a command tells a program that watches it: one JSON object a line, appended to a file.

Every event and field is in docs/logging.md. A line is written in one piece and at once; a line that a kill
has torn is closed by the next command, so that it stands alone and a reader can pass it over.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from clusterucb.errors import ClusterUCBError, InputError, StorageError
from clusterucb.version import __version__

__all__ = ["EventLog", "logged"]


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
