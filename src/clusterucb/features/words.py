"""What the words of a row tell of it, without a pass of the model: latent semantic analysis of its tokens.

    x_g = (1 + ln n_g) ln(N / N_g)     n_g times a row has g, N_g of N rows of the pool have it
    f   = (x / |x| - mean) A           of norm 1

with g a token or a pair of neighbours (tf-idf: Salton and Buckley 1988), hashed with a sign into `SKETCH`
coordinates (Weinberger et al. 2009, arXiv 0902.2206), and A the `AXES` directions in which rows of the pool
differ most (Deerwester et al. 1990). Rows of one task share the words that pose it, so that they lie together
there, whatever each is about. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusterucb.data.chat import Encoded
from clusterucb.features.principal import axes

AXES = 32
SKETCH = 8192
COUNTED = 2**20
"""Numbers by which tokens and pairs are counted; two that share one are taken for the same."""
SAMPLE = 8192
"""Rows that the axes are found by, at most."""
SEVERAL = 256
"""The nearest rows along the axes, whose words are all looked at."""
BLOCK = 512
NEAR, ITSELF = 0.5, 0.95
"""Of the nearness of a task's rows to one another: what some row has by all words, or the pool is far from
the task; and what the nearest has along the axes, where the pool has the task itself."""


def width(rows: int) -> int:
    """Numbers of a feature, in a pool of so many rows."""
    return max(1, min(AXES, rows // 2))


def words_bytes(rows: int) -> int:
    """What is kept of the words of a pool of so many rows, if there are any."""
    return 4 * (COUNTED + SKETCH * (1 + width(rows))) if rows else 0


@dataclass(frozen=True, eq=False)
class Words:
    """What is known of a pool's words.

    Attributes:
        weights: ln(N / N_g) by the number of g, 0 where fewer than two rows have it, (COUNTED,).
        mean: of x / |x| over a sample of the rows, (SKETCH,).
        axes: (SKETCH, width).
    """

    weights: NDArray[np.float32]
    mean: NDArray[np.float32]
    axes: NDArray[np.float32]

    @classmethod
    def of(cls, rows: Sequence[Encoded]) -> Words:
        """Those of a pool of these rows: the tokens of `SAMPLE` of them are kept, all others' read once."""
        having = np.zeros(COUNTED, np.int64)
        for block in _blocks(rows):
            of_row, grams, _ = _counted(block)
            np.add.at(having, np.unique(of_row * COUNTED + _number(grams)) % COUNTED, 1)
        weights = np.where(having > 1, np.log(len(rows) / np.maximum(having, 1)), 0).astype(np.float32)
        chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:SAMPLE])
        sample = [rows[row] for row in chosen.tolist()]
        total = sum((sketches(block, weights).sum(0) for block in _blocks(sample)), np.zeros(SKETCH))
        mean = (total / len(sample)).astype(np.float32)
        words = cls(weights, mean, np.zeros((SKETCH, 0), np.float32))
        return replace(words, axes=axes(_Centred(words, sample), width(len(rows)), block=BLOCK))

    def centred(self, rows: Sequence[Encoded]) -> NDArray[np.float64]:
        """Sketches of these rows without the mean, (n, SKETCH)."""
        return sketches(rows, self.weights) - self.mean

    def whole(self, rows: Sequence[Encoded]) -> NDArray[np.float64]:
        """The same of norm 1, or 0, (n, SKETCH): the axes tell what is common in the pool, this all words."""
        return _units(self.centred(rows))

    def __call__(self, rows: Sequence[Encoded]) -> NDArray[np.float64]:
        """Features of these rows, (n, width); 0 of one that has no word of the pool."""
        return _units(self.centred(rows) @ self.axes.astype(np.float64))

    def save(self, path: Path) -> None:
        """Write it, as .npz."""
        with path.open("wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Words:
        """What `save` wrote."""
        with np.load(path) as found:
            return cls(**found)


def sketches(rows: Sequence[Encoded], weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """x / |x| of these rows, (n, SKETCH); 0 where no word has a weight."""
    of_row, grams, counts = _counted(rows)
    values = (1 + np.log(counts)) * weights[_number(grams)]
    values *= 1 - 2 * (grams >> np.uint64(63)).astype(np.float64)  # the sign is another bit than the place's
    places = of_row * SKETCH + (grams >> np.uint64(32)).astype(np.int64) % SKETCH
    found = np.bincount(places, values, len(rows) * SKETCH).astype(np.float64)
    return _units(found.reshape(len(rows), SKETCH))


class _Centred:
    """Sketches of rows without the mean, made when they are read: what `axes` goes through."""

    def __init__(self, words: Words, rows: Sequence[Encoded]) -> None:
        self._words, self._rows = words, rows
        self.shape = (len(rows), SKETCH)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]:
        return self._words.centred(self._rows[rows]).astype(np.float32)


def _blocks(rows: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    starts = range(0, len(rows), BLOCK)
    return ([rows[row] for row in range(start, min(start + BLOCK, len(rows)))] for start in starts)


def _counted(rows: Sequence[Encoded]) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64]]:
    """Row, hash and count of every token and pair of neighbours, each once a row, by row."""
    of_row = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    tokens = _mixed(np.concatenate([row.ids for row in rows]).astype(np.uint64))
    paired = of_row[1:] == of_row[:-1]
    pairs = _mixed(_mixed(tokens[:-1]) + tokens[1:])[paired]
    grams = np.concatenate([tokens, pairs])
    of_gram = np.concatenate([of_row, of_row[1:][paired]])
    order = np.lexsort((grams, of_gram))
    grams, of_gram = grams[order], of_gram[order]
    first = np.ones(len(grams), bool)
    first[1:] = (grams[1:] != grams[:-1]) | (of_gram[1:] != of_gram[:-1])
    return of_gram[first], grams[first], np.diff(np.flatnonzero(np.append(first, True)))


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of each (the finaliser of splitmix64: Steele, Lea and Flood 2014)."""
    z = numbers + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


def _number(grams: NDArray[np.uint64]) -> NDArray[np.int64]:
    number: NDArray[np.int64] = (grams % np.uint64(COUNTED)).astype(np.int64)
    return number


def _units(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of norm 1, or 0."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    units: NDArray[np.float64] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return units
