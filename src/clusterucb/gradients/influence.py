"""Influence of a row: the maximum over subtasks of <feature, direction>, from a store or a live model.

`Influence = Callable[[rows], scores]`: a bandit does not know which of the two it calls.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clusterucb.gradients.batches import plan
from clusterucb.rundir import check_made_with

__all__ = [
    "EndToEnd",
    "LiveInfluence",
    "Rows",
    "ScoreLog",
    "influence",
    "stored_influence",
    "weighted_directions",
]


class Rows(Protocol):
    """Features (N, d), float16 or float32, read by row slices: an array, or FeatureStore.features."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


def influence(features: NDArray[Any], directions: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scores (n,) of `features` (n, d) against `directions` (S, d).

    Computed in float64 and rounded to float32, so that a row's score does not depend on the rows that
    were scored with it.
    """
    products = features.astype(np.float64) @ directions.T.astype(np.float64)  # (n, S)
    scores: NDArray[np.float64] = products.max(1).astype(np.float32).astype(np.float64)
    return scores


def stored_influence(
    features: Rows, directions: NDArray[np.floating], block: int = 1024
) -> NDArray[np.float64]:
    """Scores of all N stored rows, `block` rows in memory at a time."""
    starts = range(0, len(features), block)
    return np.concatenate([influence(features[start : start + block], directions) for start in starts])


class EndToEnd:
    """Features of several checkpoints laid end to end, (N, C d): as one store is read, so are they.

    Args:
        stores: of the same N rows, one a checkpoint.
    """

    def __init__(self, stores: Sequence[Rows]) -> None:
        self._stores = stores

    def __len__(self) -> int:
        return len(self._stores[0])

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """A run of rows, (B, C d)."""
        return np.concatenate([store[rows] for store in self._stores], axis=1)


def weighted_directions(
    directions: Sequence[NDArray[np.float32]], weights: Sequence[float]
) -> NDArray[np.float64]:
    """Directions (S, d) of C checkpoints, each times its weight, laid end to end, (S, C d).

    The inner product with features laid end to end is LESS's sum over checkpoints (Xia et al. 2024, arXiv
    2402.04333), so that their influence is the maximum over subtasks of that sum.
    """
    return np.concatenate(
        [w * d.astype(np.float64) for w, d in zip(weights, directions, strict=True)], axis=1
    )


class ScoreLog:
    """Scores on disk as they are computed, so that a killed selection computes none twice.

    One line a micro-batch, with the seconds spent so far; a line torn by a kill is dropped. Floats
    round-trip exactly.

    Args:
        path: of the log; lines of an earlier attempt are kept.
        weights: fingerprint of the weights that the scores are taken at.

    Raises:
        MismatchError: the lines there were taken at other weights.
    """

    def __init__(self, path: Path, weights: str) -> None:
        self._scores = np.empty(0)  # by row, up to the last that has one; NaN for those that have none
        self.seconds = 0.0
        """Time spent on computing scores, earlier attempts included."""
        whole = 0
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    entry = json.loads(line)
                    check_made_with(entry, {"weights": weights}, str(path))
                    found = entry["scores"]
                    self._keep(np.array([*map(int, found)], np.int64), [*found.values()])
                    self.seconds = entry["seconds"]
                    whole += len(line)
        self._weights = weights
        self._file = path.open("ab")
        self._file.truncate(whole)

    def __enter__(self) -> ScoreLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def known(self, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """The rows' scores if all were computed before, else None."""
        if rows.max(initial=-1) >= len(self._scores):
            return None
        scores = self._scores[rows]
        return None if np.isnan(scores).any() else scores

    def add(self, rows: NDArray[np.int64], scores: NDArray[np.float64], seconds: float) -> None:
        """Append one micro-batch that took `seconds`."""
        self.seconds += seconds
        new = dict(zip(rows.tolist(), scores.tolist(), strict=True))
        self._file.write(
            json.dumps({"weights": self._weights, "scores": new, "seconds": self.seconds}).encode() + b"\n"
        )
        self._file.flush()
        self._keep(rows, scores)

    def _keep(self, rows: NDArray[np.int64], scores: ArrayLike) -> None:
        """Eight bytes a row of the pool: a dict takes a hundred for each that is scored."""
        have, need = len(self._scores), int(rows.max(initial=-1)) + 1
        if need > have:
            self._scores = np.append(self._scores, np.full(max(need - have, have // 8), np.nan))
        self._scores[rows] = scores


class LiveInfluence:
    """Influence at the model's current weights: a gradient for each row asked for.

    Args:
        features: computes those of one micro-batch of rows, (b,) to (b, d).
        lengths: tokens of each row, (N,).
        directions: of the subtasks, (S, d).
        batch_tokens: bound of a micro-batch.
        log: where scores are kept, and looked up first.
        progress: told (rows, tokens) after each micro-batch.
    """

    def __init__(
        self,
        features: Callable[[NDArray[np.int64]], NDArray[Any]],
        lengths: NDArray[np.int64],
        directions: NDArray[np.floating],
        batch_tokens: int,
        log: ScoreLog,
        progress: Callable[[int, int], None] = lambda _rows, _tokens: None,
    ) -> None:
        self.features, self.lengths, self.directions = features, lengths, directions
        self.batch_tokens, self.log, self.progress = batch_tokens, log, progress

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores (n,) of `rows` (n,), in their order."""
        scores = np.empty(len(rows), np.float64)
        for batch in plan(self.lengths[rows], self.batch_tokens):
            asked = rows[batch]
            known = self.log.known(asked)
            scores[batch] = self._compute(asked) if known is None else known
            self.progress(len(asked), int(self.lengths[asked].sum()))
        return scores

    def _compute(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        started = time.monotonic()
        scores = influence(self.features(rows), self.directions)
        self.log.add(rows, scores, time.monotonic() - started)
        return scores
