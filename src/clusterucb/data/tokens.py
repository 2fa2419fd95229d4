"""Rows as tokens, in three flat arrays, in memory or mapped from a folder: built once, read many times.

| file          | holds                                                   |
|---------------|---------------------------------------------------------|
| `ids.bin`     | int32, the tokens of all rows, one after the other      |
| `labels.bin`  | one byte a token, 1 where it is a label                 |
| `offsets.npy` | int64 [n + 1], where each row begins; written last      |
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clusterucb.data.chat import ChatFormat, Encoded, encode, fit
from clusterucb.data.rows import Row
from clusterucb.errors import InputError

__all__ = ["Excluded", "FittedTokens", "Tokens", "encode_rows", "fitted"]


@dataclass(frozen=True)
class Excluded:
    """A row that cannot be used, and why."""

    index: int
    reason: str


class Tokens:
    """A read-only sequence of `Encoded` rows. Make one with `build` or `open`."""

    def __init__(
        self, ids: npt.NDArray[np.int32], labels: npt.NDArray[np.bool_], offsets: npt.NDArray[np.int64]
    ) -> None:
        self._ids, self._labels, self._offsets = ids, labels, offsets

    @classmethod
    def build(cls, rows: Iterable[Encoded]) -> Tokens:
        """Hold `rows` in memory."""
        ids, labels, offsets = array("i"), array("b"), array("q", [0])
        for row in rows:
            ids.frombytes(row.ids.astype(np.int32, copy=False).tobytes())
            labels.frombytes(row.labels.tobytes())
            offsets.append(len(ids))
        flat = np.frombuffer(ids, np.int32), np.frombuffer(labels, np.bool_), np.frombuffer(offsets, np.int64)
        for values in flat:
            values.flags.writeable = False
        return cls(*flat)

    @classmethod
    def write(cls, folder: Path, rows: Iterable[Encoded]) -> None:
        """Write `rows` into `folder`, made if missing, one at a time. A full disk raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        offsets = array("q", [0])
        # Plain writes and no memory map: into a map a full disk is SIGBUS, not an error.
        with (folder / "ids.bin").open("wb") as ids, (folder / "labels.bin").open("wb") as labels:
            for row in rows:
                ids.write(row.ids.astype(np.int32, copy=False).tobytes())
                labels.write(row.labels.tobytes())
                offsets.append(offsets[-1] + len(row))
        with (folder / "offsets.npy").open("wb") as file:
            np.save(file, np.frombuffer(offsets, np.int64))

    @classmethod
    def open(cls, folder: Path) -> Tokens:
        """Map what `write` wrote. Raises InputError if a file is missing or not of the size it should be."""
        try:
            offsets = np.load(folder / "offsets.npy")
            ids = _mapped(folder / "ids.bin", np.int32)
            labels = _mapped(folder / "labels.bin", np.bool_)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"{folder}: no usable tokens ({error}); delete the folder and run again"
            ) from error
        if not len(offsets) or not len(ids) == len(labels) == offsets[-1]:
            raise InputError(
                f"{folder}: ids.bin holds {len(ids)} tokens, labels.bin {len(labels)}, expected "
                f"{offsets[-1:]} by offsets.npy; delete the folder and run again"
            )
        return cls(ids, labels, offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, i: int) -> Encoded:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        start, end = self._offsets[i], self._offsets[i + 1]
        return Encoded(self._ids[start:end], self._labels[start:end])

    def __iter__(self) -> Iterator[Encoded]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row, int64 [n]."""
        return np.diff(self._offsets)

    @cached_property
    def label_counts(self) -> npt.NDArray[np.int64]:
        """Label tokens of each row, int64 [n]."""
        counts = np.zeros(len(self), np.int64)
        filled = np.flatnonzero(self.lengths)  # reduceat would give an empty row its neighbour's value
        if len(filled):
            counts[filled] = np.add.reduceat(self._labels, self._offsets[filled], dtype=np.int64)
        return counts


class FittedTokens(Sequence[Encoded]):
    """`tokens` with every row cut to `length`; all rows must fit (see `fitted`)."""

    def __init__(self, tokens: Tokens, length: int) -> None:
        self._tokens, self._length = tokens, length
        self.lengths: npt.NDArray[np.int64] = np.minimum(tokens.lengths, length)
        """At most so many tokens has each row, (N,)."""

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> Encoded:  # type: ignore[override]
        row = fit(self._tokens[index], self._length)
        if isinstance(row, str):
            raise ValueError(f"row {index}: {row}")
        return row


def encode_rows(rows: Iterable[Row], tokenizer: Any, chat: ChatFormat) -> Iterator[Encoded]:
    """`encode` of each row, one at a time. Raises as `encode` does, naming the row by its id."""
    return (encode(row.messages, tokenizer, chat, row.id) for row in rows)


def fitted(tokens: Tokens, max_length: int) -> tuple[npt.NDArray[np.int64], list[Excluded]]:
    """Indices of the rows that `fit` can bring to `max_length`, int64, ascending; and the others, why.

    Stores no tokens: `fit(tokens[i], max_length)` gives those of a usable row.
    """
    usable = (tokens.label_counts > 0) & (tokens.lengths <= max_length)
    excluded = []
    for i in map(int, np.flatnonzero(~usable)):
        row = fit(tokens[i], max_length)
        if isinstance(row, str):
            excluded.append(Excluded(i, row))
        else:
            usable[i] = True
    return np.flatnonzero(usable).astype(np.int64), excluded


def _mapped(path: Path, dtype: type[np.generic]) -> npt.NDArray[Any]:
    if path.stat().st_size == 0:  # cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")
