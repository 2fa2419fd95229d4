"""Rows as tokens in three flat files: written once, read many times.

| file          | holds                                                   |
|---------------|---------------------------------------------------------|
| `ids.bin`     | int32, the tokens of all rows, one after the other      |
| `labels.bin`  | one byte a token, 1 where it is a label                 |
| `offsets.npy` | int64 [n + 1], where each row begins; written last      |
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clusterucb.data.chat import Encoded, fit
from clusterucb.errors import InputError


class Tokens:
    """A sequence of `Encoded` rows in a folder, of which each is read when it is asked for.

    Without a memory map: into one, a full disk is a killed process and not an error, and what was read of it
    would count as this process's memory.
    """

    def __init__(self, folder: Path, offsets: npt.NDArray[np.int64]) -> None:
        self._ids, self._labels, self._offsets = folder / "ids.bin", folder / "labels.bin", offsets

    @classmethod
    def write(cls, folder: Path, rows: Iterable[Encoded]) -> None:
        """Write `rows` into `folder`, made if missing, one at a time. A full disk raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        offsets = array("q", [0])
        with (folder / "ids.bin").open("wb") as ids, (folder / "labels.bin").open("wb") as labels:
            for row in rows:
                ids.write(row.ids.astype(np.int32, copy=False).tobytes())
                labels.write(row.labels.tobytes())
                offsets.append(offsets[-1] + len(row))
        with (folder / "offsets.npy").open("wb") as file:
            np.save(file, np.frombuffer(offsets, np.int64))

    @classmethod
    def open(cls, folder: Path) -> Tokens:
        """What `write` wrote. Raises InputError if a file is missing or not of the size it should be."""
        try:
            offsets = np.load(folder / "offsets.npy")
            sizes = [(folder / name).stat().st_size for name in ("ids.bin", "labels.bin")]
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"{folder}: no usable tokens ({error}); delete the folder and run again"
            ) from error
        if not len(offsets) or sizes != [4 * offsets[-1], offsets[-1]]:
            raise InputError(
                f"{folder}: ids.bin and labels.bin hold {sizes[0]} and {sizes[1]} bytes, expected 4 and 1 "
                f"for each of {offsets[-1:]} tokens by offsets.npy; delete the folder and run again"
            )
        return cls(folder, offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, i: int) -> Encoded:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        start, count = int(self._offsets[i]), int(self._offsets[i + 1] - self._offsets[i])
        return Encoded(
            np.fromfile(self._ids, np.int32, count, offset=4 * start),
            np.fromfile(self._labels, np.bool_, count, offset=start),
        )

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row, int64 [n]."""
        return np.diff(self._offsets)


class FittedTokens(Sequence[Encoded]):
    """`tokens`, or those at some `places`, (N,), with every row cut to `length`; all rows must fit."""

    def __init__(self, tokens: Tokens, length: int, places: npt.NDArray[np.int64] | None = None) -> None:
        self._tokens, self._length, self._places = tokens, length, places
        lengths = np.minimum(tokens.lengths, length)
        self.lengths: npt.NDArray[np.int64] = lengths if places is None else lengths[places]
        """At most so many tokens has each row, (N,)."""

    def __len__(self) -> int:
        return len(self.lengths)

    def at(self, places: npt.NDArray[np.int64]) -> FittedTokens:
        """The rows at these places alone."""
        return FittedTokens(self._tokens, self._length, places)

    def __getitem__(self, index: int) -> Encoded:  # type: ignore[override]
        row = fit(self._tokens[index if self._places is None else int(self._places[index])], self._length)
        if isinstance(row, str):
            raise ValueError(f"row {index}: {row}")
        return row
