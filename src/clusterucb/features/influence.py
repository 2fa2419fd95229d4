"""Influence of a row: the maximum over subtasks of <feature, direction>, from a store or a live model.

`Influence = Callable[[rows], scores]`: a bandit does not know which of the two it calls. What the directions
are of is the aim:

    mean          each subtask's: the mean over its rows (Dynamic, LESS)
    nearest       each target row's: influence is that on the row it helps most (as in arXiv 2602.14696)
    round_robin   each target row's, too; then they take rows in turn (selection/round_robin.py)
    subspace      each subtask's, and the cosine is taken inside the span of the target's gradients
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from clusterucb.errors import InputError
from clusterucb.runtime.processes import ALONE, World


class Vectors(Protocol):
    """Features (N, d), float16 or float32, read by row slices: an array, or FeatureStore.features."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, d)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


Aim = Literal["mean", "nearest", "round_robin", "subspace"]
HELD = 0.95
"""The share of the squares of a target's gradients that its subspace holds."""
OWN = 0.75
"""Of the nearness of a subtask's rows to one another: what another row of it has at least."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """Directions in the span of a target's gradients, where what a row does outside costs it nothing.

    GIST (arXiv 2602.18584): with B an orthonormal basis of the fewest principal directions of the target
    rows' unit gradients that hold `HELD` of their squares,

        influence = max over s of  <B f, B u_s> / (|B f| |B u_s|)

    Attributes:
        directions: B' B u_s, of norm 1, (S, d).
        basis: B, (r, d).
    """

    directions: NDArray[np.float32]
    basis: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, ...]:
        """(S, d)."""
        return self.directions.shape

    @classmethod
    def of(cls, rows: NDArray[np.floating], codes: NDArray[np.int64]) -> Subspace:
        """That of a target's rows (n, d), each in a subtask, (n,).

        Raises InputError where these have one direction only, in which all cosines are 1 or -1.
        """
        _, values, axes = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
        held = np.cumsum(values**2) / np.sum(values**2)
        basis = axes[: int(np.searchsorted(held, HELD)) + 1]
        if len(basis) < 2:
            raise InputError(
                f"aim subspace: the gradients of the {len(rows)} target rows have one direction and none "
                "beside it; give more target rows, or use --aim mean"
            )
        inside = means(rows, codes) @ basis.T @ basis
        inside /= np.maximum(np.linalg.norm(inside, axis=1, keepdims=True), _TINY)
        return cls(inside.astype(np.float32), basis.astype(np.float32))


Aimed = NDArray[np.floating] | Subspace
"""Directions (S, d) that features are multiplied with, or those inside a subspace."""
_TINY = np.finfo(np.float64).tiny


def aimed(aim: Aim, rows: NDArray[np.floating], codes: NDArray[np.int64]) -> NDArray[np.float32] | Subspace:
    """What an aim compares with, of a target's rows (n, d), each in a subtask, 0 to S - 1, (n,)."""
    match aim:
        case "mean":
            return means(rows, codes).astype(np.float32)
        case "subspace":
            return Subspace.of(rows, codes)
    return rows.astype(np.float32)


def means(rows: NDArray[np.floating], codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of the rows of each subtask, (S, d)."""
    sums = np.zeros((int(codes.max()) + 1, rows.shape[1]))
    np.add.at(sums, codes, rows.astype(np.float64))
    found: NDArray[np.float64] = sums / np.bincount(codes)[:, None]
    return found


def influence(features: NDArray[Any], aim: Aimed) -> NDArray[np.float64]:
    """Scores (n,) of `features` (n, d) against directions (S, d), or inside a subspace.

    Computed in float64 and rounded to float32, so that a row's score does not depend on the rows that
    were scored with it.
    """
    scores: NDArray[np.float64] = _products(features, _directions(aim)).max(1)
    if isinstance(aim, Subspace):
        scores /= np.maximum(np.linalg.norm(_products(features, aim.basis), axis=1), _TINY)
    rounded: NDArray[np.float64] = scores.astype(np.float32).astype(np.float64)
    return rounded


def similarities(features: NDArray[Any], aim: Aimed) -> NDArray[np.float32]:
    """Of each of n directions (n, d) to each feature (b, d), as turns are taken by, (n, b).

    Rounded, so that a row's do not depend on the rows beside it.
    """
    found: NDArray[np.float32] = _products(features, _directions(aim)).T.astype(np.float32)
    return found


def _directions(aim: Aimed) -> NDArray[np.floating]:
    return aim.directions if isinstance(aim, Subspace) else aim


def _products(features: NDArray[Any], directions: NDArray[np.floating]) -> NDArray[np.float64]:
    products: NDArray[np.float64] = features.astype(np.float64) @ directions.T.astype(np.float64)
    return products


def read_aimed(path: Path) -> NDArray[np.float32] | Subspace:
    """What `write_directions` (steps/features.py) wrote."""
    arrays = load_file(path)
    directions: NDArray[np.float32] = arrays["directions"]
    return Subspace(directions, arrays["basis"]) if "basis" in arrays else directions


def among_themselves(directions: NDArray[np.floating], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean inner product of the rows of each subtask with one another, (S,), by their mean alone.

    A mean d of n unit vectors has |d|² = (1 + (n - 1) c) / n, if c is that.

    Args:
        directions: the mean of each subtask's unit features, (S, d).
        counts: rows of each subtask, two at least, (S,).
    """
    squares = (directions.astype(np.float64) ** 2).sum(1)
    found: NDArray[np.float64] = (counts * squares - 1) / (counts - 1)
    return found


def own_rows(
    features: Vectors,
    directions: NDArray[np.floating],
    counts: NDArray[np.int64],
    block: int = 1024,
    least: float = 1.0,
    share: float | None = None,
) -> tuple[NDArray[np.bool_], bool]:
    """Which rows are of the task itself, (N,), of those of its subtasks that the pool has; if any is near.

    It has a subtask if some row is as near to it as its own rows are to one another on average: another such
    row has that with their mean on average, so that of several the nearest has more. All rows that have
    `OWN` of that are then the subtask's; where it has not the subtask, they are near it. Of one whose rows
    are not alike nothing can be said, and of a task of such alone rows are taken to be near.

    Args:
        features: of norm 1, (N, d).
        directions: the mean of each subtask's unit features, (S, d).
        counts: rows of each subtask, (S,); of a single one nothing can be said, either.
        least: of what a subtask's rows have among themselves, what the nearest has where the pool has it.
        share: of the same, what each of its rows has, and near ones; `OWN` unless another is given.
    """
    share = OWN if share is None else share
    told = np.flatnonzero(counts > 1)
    among = among_themselves(directions[told], counts[told])  # (s,)
    nearest, own = np.full(len(told), -np.inf), np.empty((len(features), len(told)), bool)
    for at in range(0, len(features), block):
        near = _products(features[at : at + block], directions[told])  # (b, s)
        np.maximum(nearest, near.max(0), out=nearest)
        own[at : at + block] = near >= share * among
    alike = among > 0
    found: NDArray[np.bool_] = np.any(own[:, alike & (nearest >= least * among)], axis=1)
    return found, not alike.any() or bool(own[:, alike].any())


def stored_influence(
    features: Vectors, aim: Aimed, block: int = 1024, world: World = ALONE
) -> NDArray[np.float64]:
    """Scores of all N stored rows, `block` rows in memory at a time."""

    def scores(starts: Sequence[int]) -> Iterator[NDArray[np.float64]]:
        return (influence(features[start : start + block], aim) for start in starts)

    blocks = range(0, len(features), block)
    return np.concatenate([found for _, found in world.share(blocks, scores, each=64)])


class Picked:
    """Some rows of a store, (n, d), read as runs of it: for few that are left out.

    Args:
        store: of all rows.
        places: of the rows, ascending, (n,).
    """

    def __init__(self, store: Vectors, places: NDArray[np.int64]) -> None:
        self._store, self._places = store, places
        self.shape = (len(places), store.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """A run of rows, (B, d)."""
        places = self._places[rows]
        first = int(places[0]) if len(places) else 0
        return self._store[first : int(places[-1]) + 1 if len(places) else 0][places - first]

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> NDArray[Any]:
        """All rows at once, for stores that are small."""
        return np.asarray(self[:], dtype)


def rows_of(features: Vectors, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Those of some rows, in any order, (n, d)."""
    return np.concatenate([features[row : row + 1] for row in rows.tolist()])


class EndToEnd:
    """Features of several checkpoints laid end to end, (N, C d): as one store is read, so are they.

    Args:
        stores: of the same N rows, one a checkpoint.
    """

    def __init__(self, stores: Sequence[Vectors]) -> None:
        self._stores = stores
        self.shape = (len(stores[0]), sum(store.shape[1] for store in stores))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """A run of rows, (B, C d)."""
        return np.concatenate([store[rows] for store in self._stores], axis=1)


def weighted_directions(aims: Sequence[Aimed], weights: Sequence[float]) -> NDArray[np.float64]:
    """Directions (S, d) of C checkpoints, each times its weight, laid end to end, (S, C d).

    The inner product with features laid end to end is LESS's sum over checkpoints (Xia et al. 2024, arXiv
    2402.04333), so that their influence is the maximum over subtasks of that sum.
    """
    return np.concatenate(
        [w * _directions(d).astype(np.float64) for w, d in zip(weights, aims, strict=True)], axis=1
    )
