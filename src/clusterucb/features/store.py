"""Features on disk: one row of fixed width a pool row, a byte that says the row is finished, a manifest last.

Rows are written in any order, by any number of processes and attempts. Neither side uses a memory map: a
full disk is then an error with a name, not a killed process, and what was read is no part of this process's
memory. A row counts as finished only after its bytes were forced to disk. Each process has a file of such
marks of its own, as two that write one block of a file on a network may lose each other's; a row is finished
that any of them marks.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import MismatchError
from clusterucb.features.encoding import ENCODINGS, Encoding
from clusterucb.runtime.files import check_made_with, read_json, write_json
from clusterucb.runtime.processes import ALONE, World
from clusterucb.runtime.reading import reader

FLUSH_SECONDS = 2.0


class FeatureWriter:
    """Fills a folder with features, resumable at any row.

    Args:
        folder: where to write; an earlier attempt's rows are kept if it was made with the same things.
        rows: N.
        dim: d.
        made_with: fingerprints of all that the features depend on.
        dtype: how a row is kept, a name of ENCODINGS.
        world: processes that fill the folder together, each with rows of its own; one that several compute is
            the same in all.
    """

    def __init__(
        self,
        folder: Path,
        rows: int,
        dim: int,
        made_with: Mapping[str, object],
        dtype: str = "float16",
        world: World = ALONE,
    ) -> None:
        self.folder, self.rows = folder, rows
        self._encoding, self._world = ENCODINGS[dtype], world
        shape = {"rows": rows, "dim": dim, "store_dtype": dtype}
        self._header = {**shape, "made_with": dict(made_with)}
        self.done, spent = world.lead(lambda: self._begin({**made_with, **shape}))
        self._features = _open(_rows_file(folder, self._encoding))
        self._losses = _open(folder / "losses.f32")
        self._marks = _open(folder / (f"done-{world.rank}.u8" if world.rank else "done.u8"))
        self._clock = _open(folder / "seconds.f64")
        self._pending: list[NDArray[np.int64]] = []
        self._started = time.monotonic() - spent
        self._flushed = time.monotonic()

    done: NDArray[np.bool_]
    """Rows that are finished, shape (N,): by all processes before now, and from now on by this one."""

    def _begin(self, expected: Mapping[str, object]) -> tuple[NDArray[np.bool_], float]:
        """What earlier attempts have left, if it is as expected: finished rows, and the seconds spent."""
        header, clock = self.folder / "header.json", self.folder / "seconds.f64"
        self.folder.mkdir(parents=True, exist_ok=True)
        if header.exists():
            found = _read_header(header)
            check_made_with({**found, **found["made_with"]}, expected, str(self.folder))
        else:
            write_json(header, self._header)
        spent = np.fromfile(clock, np.float64, 1) if clock.exists() else np.zeros(0)
        return self._finished(), float(spent.sum())

    def _finished(self) -> NDArray[np.bool_]:
        """Rows that any process has marked."""
        done = np.zeros(self.rows, bool)
        for marks in self.folder.glob("done*.u8"):
            stored = np.fromfile(marks, np.uint8, self.rows)
            done[: len(stored)] |= stored != 0
        return done

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            for descriptor in (self._features, self._losses, self._marks, self._clock):
                os.close(descriptor)

    @property
    def seconds(self) -> float:
        """Time spent on the rows so far, earlier attempts included."""
        return time.monotonic() - self._started

    def fill(
        self,
        batches: Sequence[NDArray[np.int64]],
        compute: Callable[[Sequence[NDArray[np.int64]]], Iterable[tuple[NDArray[Any], NDArray[np.float64]]]],
        advance: Callable[[int, int], object] = lambda _new, _row: None,
    ) -> None:
        """Write what is missing of the batches of rows, as `compute` finds it; the processes share them.

        Args:
            batches: rows, (B,) each.
            compute: of some batches, one after the other, features (B, d) and losses (B,).
            advance: told how many rows of a batch are new, and the last of its rows.
        """

        def written(batches: Sequence[NDArray[np.int64]]) -> Iterator[int]:
            for rows, found in zip(batches, compute(batches), strict=True):
                new = len(rows) - int(self.done[rows].sum())
                self.write(rows, *found)
                yield new

        missing = [rows for rows in batches if not self.done[rows].all()]
        for rows, new in self._world.share(missing, written, each=16):
            advance(new, int(rows[-1]))

    def write(
        self, rows: NDArray[np.int64], features: NDArray[np.float16], losses: NDArray[np.float64]
    ) -> None:
        """Store `features` (B, d) and `losses` (B,) of `rows` (B,)."""
        encoded = self._encoding.encode(features)  # (B, width)
        for row, feature, loss in zip(rows.tolist(), encoded, losses.astype(np.float32), strict=True):
            _pwrite(self._features, feature.tobytes(), row * len(feature))
            _pwrite(self._losses, loss.tobytes(), row * 4)
        self._pending.append(rows)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def adopt(self, store: FeatureStore, rows: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Take `rows` (B,) over from their `places` in a store of the same kind, byte for byte."""
        if self._world.leads:
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                stored = store.features.stored(slice(place, place + 1))
                _pwrite(self._features, stored.tobytes(), row * stored.size)
                _pwrite(self._losses, store.losses[place].tobytes(), row * 4)
            self._pending.append(rows)
            self.flush()
        self.done = self._world.lead(self._finished)

    def flush(self) -> None:
        """Force what was written to disk, then mark it as finished."""
        os.fsync(self._features)
        os.fsync(self._losses)
        for rows in self._pending:
            for row in rows.tolist():
                _pwrite(self._marks, b"\1", row)
            self.done[rows] = True
        os.fsync(self._marks)
        if self._world.leads:
            _pwrite(self._clock, np.float64(self.seconds).tobytes(), 0)
        self._pending.clear()
        self._flushed = time.monotonic()

    def finish(self, extra: Mapping[str, object]) -> None:
        """Write the manifest that makes the store whole, on which all processes wait here."""
        self.flush()
        self._world.gather(None)
        if missing := self.rows - int(self._world.lead(self._finished).sum()):
            raise RuntimeError(f"{self.folder}: {missing} rows are not finished")
        if self._world.leads:
            write_json(self.folder / "manifest.json", {**self._header, **extra})
        self._world.gather(None)


class StoredFeatures:
    """The rows of a finished store, (N, d), read and decoded when they are asked for; nothing is kept.

    Args:
        file: of all rows.
        rows: N.
        dim: d.
        encoding: how a row is kept.
        once: all rows are read one time, by several threads (runtime/reading.py).
    """

    def __init__(self, file: Path, rows: int, dim: int, encoding: Encoding, *, once: bool = False) -> None:
        self.shape = (rows, dim)
        self._file, self._read = file, reader(file, once=once)
        self._encoding, self._width = encoding, encoding.width(dim)

    @property
    def in_one_pass(self) -> StoredFeatures:
        """The same for who reads all rows one time, by several threads."""
        return StoredFeatures(self._file, *self.shape, self._encoding, once=True)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """A run of rows, (B, d): float16 if they are kept so, else float32."""
        return self._encoding.decode(self.stored(rows), self.shape[1])

    def stored(self, rows: slice) -> NDArray[np.uint8]:
        """The bytes of a run of rows, (B, width)."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise IndexError(f"features[::{step}]: only runs of rows can be read")
        count = max(0, stop - start)
        return self._read(start * self._width, count * self._width).reshape(count, self._width)

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> NDArray[Any]:
        """All rows at once, for stores that are small."""
        return np.asarray(self[:], dtype)


class FeatureStore:
    """A finished store, in a folder that a FeatureWriter has filled.

    Raises MismatchError where it is not finished, or its files are not as long as its manifest says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest = _read_header(folder / "manifest.json")
        except (FileNotFoundError, json.JSONDecodeError):
            raise MismatchError(f"{folder}: not a finished feature store; run `gradients` first") from None
        rows, dim = int(self.manifest["rows"]), int(self.manifest["dim"])
        encoding = ENCODINGS[self.manifest["store_dtype"]]
        file = _rows_file(folder, encoding)
        if file.stat().st_size != rows * encoding.width(dim):
            raise MismatchError(f"{file}: expected {rows} x {dim} {encoding.name}; it is damaged")
        self.features = StoredFeatures(file, rows, dim, encoding)
        """L2-normalised features, (N, d), as they were kept."""
        self.losses: NDArray[np.float32] = np.fromfile(folder / "losses.f32", np.float32)
        """Loss of each row at the checkpoint, (N,)."""

    def __len__(self) -> int:
        return len(self.features)


def _rows_file(folder: Path, encoding: Encoding) -> Path:
    return folder / f"features.{encoding.suffix}"


def _read_header(path: Path) -> dict[str, Any]:
    """A header or manifest; one without `store_dtype` is of the time when there was only float16."""
    return {"store_dtype": "float16", **read_json(path)}


def _open(path: Path) -> int:
    """For writing only: a network's client would else read, and write back, what others write beside it."""
    return os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)


def _pwrite(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
