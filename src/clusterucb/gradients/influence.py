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
from numpy.typing import NDArray

from clusterucb.data.chat import Encoded
from clusterucb.gradients.batches import plan
from clusterucb.gradients.features import Featurizer
from clusterucb.rundir import check_made_with

__all__ = ["LiveInfluence", "ScoreLog", "influence", "stored_influence"]


class Rows(Protocol):
    """float16 or float32 (N, d), read by row slices: an array, or FeatureStore.features."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


def influence(features: NDArray[Any], directions: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores (n,) of `features` (n, d) against `directions` (S, d).

    Computed in float64 and rounded to float32, so that a row's score does not depend on the rows that
    were scored with it.
    """
    products = features.astype(np.float64) @ directions.T.astype(np.float64)  # (n, S)
    scores: NDArray[np.float64] = products.max(1).astype(np.float32).astype(np.float64)
    return scores


def stored_influence(
    features: Rows, directions: NDArray[np.float32], block: int = 1024
) -> NDArray[np.float64]:
    """Scores of all N stored rows, `block` rows in memory at a time."""
    starts = range(0, len(features), block)
    return np.concatenate([influence(features[start : start + block], directions) for start in starts])


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
        self._scores: dict[int, float] = {}
        self.seconds = 0.0
        """Time spent on computing scores, earlier attempts included."""
        whole = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
            if not line.endswith(b"\n"):
                break
            entry = json.loads(line)
            check_made_with(entry, {"weights": weights}, str(path))
            self._scores.update({int(row): score for row, score in entry["scores"].items()})
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
        scores = [self._scores.get(row) for row in rows.tolist()]
        return None if None in scores else np.array(scores, np.float64)

    def add(self, rows: NDArray[np.int64], scores: NDArray[np.float64], seconds: float) -> None:
        """Append one micro-batch that took `seconds`."""
        self.seconds += seconds
        new = dict(zip(rows.tolist(), scores.tolist(), strict=True))
        self._file.write(
            json.dumps({"weights": self._weights, "scores": new, "seconds": self.seconds}).encode() + b"\n"
        )
        self._file.flush()
        self._scores.update(new)


class LiveInfluence:
    """Influence at the model's current weights: a gradient for each row asked for.

    Args:
        featurize: with the moments of now.
        rows: token rows, by row number.
        lengths: their lengths, (N,).
        directions: of the subtasks, (S, d).
        batch_tokens: bound of a micro-batch.
        log: where scores are kept, and looked up first.
        describe: names a row in an error.
        progress: told (rows, tokens) after each micro-batch.
    """

    def __init__(
        self,
        featurize: Featurizer,
        rows: Sequence[Encoded],
        lengths: NDArray[np.int64],
        directions: NDArray[np.float32],
        batch_tokens: int,
        log: ScoreLog,
        describe: Callable[[int], str] = "row {}".format,
        progress: Callable[[int, int], None] = lambda _rows, _tokens: None,
    ) -> None:
        self.featurize, self.rows, self.lengths = featurize, rows, lengths
        self.directions, self.batch_tokens, self.log = directions, batch_tokens, log
        self.describe, self.progress = describe, progress

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
        numbers = rows.tolist()
        features, _ = self.featurize([self.rows[row] for row in numbers], lambda b: self.describe(numbers[b]))
        scores = influence(features, self.directions)
        self.log.add(rows, scores, time.monotonic() - started)
        return scores
