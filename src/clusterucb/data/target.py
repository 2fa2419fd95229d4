"""The target: the few rows of the task to get better at, in memory, each in a subtask of any size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clusterucb.data.pool import Pool
from clusterucb.data.rows import Message, Row, text_digest, unicode
from clusterucb.errors import InputError

ONE_GROUP = "target"
"""Name of the only subtask where no subtask column is named."""


@dataclass(frozen=True, eq=False)
class Target:
    """Target rows; row `i` belongs to `subtasks[codes[i]]`. Make one with `Target.read`."""

    rows: list[Row]
    subtasks: list[str]
    """Sorted, each with at least one row; with the task's name in front where there are several."""
    codes: npt.NDArray[np.int64]
    fingerprint: str
    """Sha256 of names, raw lines and the subtask column's name, in hex."""
    tasks: list[str]
    """Names of the tasks that are kept apart, sorted; [""] where there is one."""
    task_codes: npt.NDArray[np.int64]
    """The task of each subtask."""

    @classmethod
    def read(
        cls,
        paths: str | Path | Sequence[str | Path],
        subtask: str | None = None,
        tasks: Sequence[str] | None = None,
    ) -> Target:
        """Read files or hub data sets as `Pool.read` does; `subtask` names the column to group by.

        `tasks` are the names of the tasks that the files are of, where several are kept apart.
        Raises InputError as `Pool.read` does, for a row that it refuses, as each of the few counts, and for
        one that lacks the subtask column.
        """
        pool, named = Pool.read(paths), any(tasks or ())
        if pool.refused:
            raise InputError(f"{pool.refused[0].where}: {pool.refused[0].reason}")
        groups = [
            (tasks[pool.file(i)] if tasks else "", _group(record, subtask, where))
            for i, (record, where) in enumerate(pool.records())
        ]
        pairs = sorted(set(groups))
        known, task_codes = np.unique([task for task, _ in pairs], return_inverse=True)
        told = f"{pool.fingerprint} {subtask!r}" + (f" {tasks}" if named else "")
        return cls(
            list(pool),
            [_called(task, name) for task, name in pairs],
            np.array([pairs.index(group) for group in groups], np.int64),
            hashlib.sha256(told.encode()).hexdigest(),
            known.tolist(),
            task_codes.astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Row:
        return self.rows[i]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def text_digests(self) -> npt.NDArray[np.uint64]:
        """One hash a row of its conversation's text (`rows.text_digest`)."""
        return np.array([text_digest(row.messages) for row in self.rows], np.uint64)


TextRows = Pool | Target
"""Rows whose texts can be compared."""


def overlap(a: TextRows, b: TextRows) -> list[tuple[str, str]]:
    """Ids (of `a`, of `b`) of all pairs of rows with the same text, in `a`'s order, then `b`'s.

    Text is roles and contents; space around a content does not count.
    """
    ours, theirs = a.text_digests(), b.text_digests()
    pairs = []
    for i in np.flatnonzero(np.isin(ours, theirs)):
        row = a[int(i)]
        twins = (b[int(j)] for j in np.flatnonzero(theirs == ours[i]))
        pairs += [(row.id, twin.id) for twin in twins if _text(row.messages) == _text(twin.messages)]
    return pairs


def _text(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message.role, message.content.strip()) for message in messages]


def _called(task: str, subtask: str) -> str:
    if task and subtask == ONE_GROUP:
        return task
    return f"{task}/{subtask}" if task else subtask


def _group(record: dict[str, Any], column: str | None, where: str) -> str:
    if column is None:
        return ONE_GROUP
    value = record.get(column)
    missing = value is None or value != value
    if isinstance(value, (str, int, float)) and str(value).strip() and not missing:
        return unicode(str(value), f"subtask column {column!r}", where)
    if missing:
        raise InputError(
            f"{where}: no subtask column {column!r}; its columns are {', '.join(map(repr, record))}. "
            "Fill the column in for every row, or name another"
        )
    raise InputError(f"{where}: subtask column {column!r} is {value!r:.60}, expected a name or a number")
