"""Influence of live rows, micro-batch by micro-batch, and the log by which a killed selection goes on."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.features.influence import Aimed, influence
from clusterucb.gradients.batches import micro_batches
from clusterucb.runtime.files import check_made_with
from clusterucb.runtime.processes import ALONE, World


class ScoreLog:
    """Scores on disk as they are computed, so that a killed selection computes none twice.

    One line a micro-batch, with the seconds spent so far; a line torn by a kill is dropped. Floats
    round-trip exactly.

    Args:
        path: of the log; lines of an earlier attempt are kept.
        weights: fingerprint of the weights that the scores are taken at.
        world: processes that all add the same scores; rank 0 keeps the file, and all go on from what it held.

    Raises:
        MismatchError: the lines there were taken at other weights.
    """

    def __init__(self, path: Path, weights: str, world: World = ALONE) -> None:
        self._path, self._weights, self._world = path, weights, world
        self._scores, self.seconds, whole = world.lead(self._read)
        self._file = path.open("ab") if world.leads else None
        if self._file is not None:
            self._file.truncate(whole)

    seconds: float
    """Time spent on computing scores, earlier attempts included."""

    def _read(self) -> tuple[NDArray[np.float64], float, int]:
        """The scores of whole lines by row, the seconds that they took and the bytes that they fill."""
        scores, seconds, whole = np.empty(0), 0.0, 0
        if not self._path.exists():
            return scores, seconds, whole
        with self._path.open("rb") as file:
            for line in itertools.takewhile(lambda line: line.endswith(b"\n"), file):
                entry = json.loads(line)
                check_made_with(entry, {"weights": self._weights}, str(self._path))
                found = entry["scores"]
                scores = _kept(scores, np.array([*map(int, found)], np.int64), [*found.values()])
                seconds = entry["seconds"]
                whole += len(line)
        return scores, seconds, whole

    def __enter__(self) -> ScoreLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def known(self, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """The rows' scores if all were computed before, else None."""
        if rows.max(initial=-1) >= len(self._scores):
            return None
        scores = self._scores[rows]
        return None if np.isnan(scores).any() else scores

    def each(
        self,
        rows: NDArray[np.int64],
        batches: Sequence[NDArray[np.int64]],
        compute: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Every batch of places in `rows` with its scores: the known ones, then those computed and added.

        `compute` is told rows, (b,), and returns their scores, (b,); several processes share the batches.
        """
        unknown = []
        for batch in batches:
            if (known := self.known(rows[batch])) is None:
                unknown.append(batch)
            else:
                yield batch, known
        started = time.monotonic()
        for batch, found in self._world.share(unknown, partial(map, lambda batch: compute(rows[batch]))):
            self.add(rows[batch], found, time.monotonic() - started)
            yield batch, found
            started = time.monotonic()

    def add(self, rows: NDArray[np.int64], scores: NDArray[np.float64], seconds: float) -> None:
        """Append one micro-batch that took `seconds`."""
        self.seconds += seconds
        new = dict(zip(rows.tolist(), scores.tolist(), strict=True))
        if self._file is not None:
            entry = {"weights": self._weights, "scores": new, "seconds": self.seconds}
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
        self._scores = _kept(self._scores, rows, scores)


def _kept(known: NDArray[np.float64], rows: NDArray[np.int64], scores: ArrayLike) -> NDArray[np.float64]:
    """Scores by row, up to the last that has one and NaN for those that have none, with those of `rows`.

    Eight bytes a row of the pool: a dict takes a hundred for each that is scored.
    """
    have, need = len(known), int(rows.max(initial=-1)) + 1
    if need > have:
        known = np.append(known, np.full(max(need - have, have // 8), np.nan))
    known[rows] = scores
    return known


@dataclass(frozen=True)
class LiveInfluence:
    """Influence at the model's current weights: a gradient for each row asked for.

    Attributes:
        features: computes those of one micro-batch of rows, (b,) to (b, d).
        lengths: tokens of each row, (N,).
        aim: what they are compared with.
        batch_tokens: bound of a micro-batch.
        log: where scores are kept, and looked up first; its processes all ask for the same rows, and each
            computes a share of the micro-batches.
        progress: told the number of rows after each micro-batch.
    """

    features: Callable[[NDArray[np.int64]], NDArray[Any]]
    lengths: NDArray[np.int64]
    aim: Aimed
    batch_tokens: int
    log: ScoreLog
    progress: Callable[[int], None] = lambda _rows: None

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores (n,) of `rows` (n,), in their order."""
        scores = np.empty(len(rows), np.float64)
        for batch, found in self.log.each(
            rows, micro_batches(self.lengths[rows], self.batch_tokens), self._scored
        ):
            scores[batch] = found
            self.progress(len(batch))
        return scores

    def _scored(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return influence(self.features(rows), self.aim)
