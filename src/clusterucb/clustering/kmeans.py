"""Spherical k-means over a store of features that need not fit in memory.

Knows an array that can be sliced by rows, and torch; nothing of gradients or of selection. Rows are
compared by cosine; a centroid is the direction of the sum of its rows (Dhillon and Modha, 2001). The store
is read block by block, one pass an iteration: about `block * d * 10 + k * d * 12` bytes, and 24 a row.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.nn.functional import embedding_bag

from clusterucb.clustering.nearest import Backend, Nearest, nearest_by
from clusterucb.errors import ConfigError, InputError, StorageError

__all__ = ["Clusters", "Features", "default_k", "spherical_kmeans"]

SAME = 1 - 1e-6  # rows of a larger cosine are one row to float32 arithmetic
FILE = "clusters.safetensors"


class Features(Protocol):
    """float16 or float32 [N, d], read by row slices: np.ndarray, np.memmap, FeatureStore.features."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, d)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


@dataclass(frozen=True, eq=False)
class Clusters:
    """A cluster for every row; `labels` are the nearest of exactly these `centroids`."""

    labels: NDArray[np.int64]  # [N], 0..k-1
    centroids: NDArray[np.float32]  # [k, d], unit length
    history: tuple[float, ...]  # the objective of each assignment of rows to centroids, the last of these

    @property
    def k(self) -> int:
        """Number of centroids."""
        return len(self.centroids)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows of each cluster, int64[k]."""
        return np.bincount(self.labels, minlength=self.k)

    @property
    def objective(self) -> float:
        """Mean cosine of the rows to their centroids, at most 1."""
        return self.history[-1]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file, whole or not at all; into a folder, as `clusters.safetensors`.

        Raises StorageError where that cannot be done.
        """
        file = _file(path)
        part = file.with_name(file.name + ".part")
        tensors = {
            "labels": self.labels,
            "centroids": self.centroids,
            "history": np.array(self.history, dtype=np.float64),
        }
        try:
            save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, part)
            part.replace(file)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            raise StorageError(
                f"{file}: cannot be written ({error}); check the folder and free space"
            ) from None
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Clusters:
        """Read what `save` wrote. Raises InputError for a file that is missing or something else."""
        file = _file(path)
        try:
            tensors = load_file(file)
            labels, centroids, history = (tensors[name] for name in ("labels", "centroids", "history"))
        except FileNotFoundError:
            raise InputError(f"{file}: no such file; expected clusters written by Clusters.save()") from None
        except (SafetensorError, KeyError) as error:
            raise InputError(f"{file}: not clusters written by Clusters.save() ({error})") from None
        return cls(labels, centroids, tuple(history.tolist()))


def default_k(n: int, budget_rows: int) -> int:
    """`sqrt(n)` clusters, rounded; at most half the rows of the budget, as each costs a cold-start draw."""
    return max(1, min(round(math.sqrt(n)), budget_rows // 2))


def spherical_kmeans(
    features: Features,
    k: int,
    *,
    iterations: int = 20,
    seed: int = 0,
    device: str | torch.device = "cpu",
    block: int = 1024,
    backend: Backend = "torch",
    progress: Callable[[int, int, float], None] | None = None,
) -> Clusters:
    """Maximise the mean cosine of rows to the centroid of their cluster.

    Starts from `k` distinct rows by `seed` and updates the centroids `iterations` times at most, fewer once
    no label changes. An empty cluster moves to the row farthest from its centroid; at the end none is empty
    where there are `k` rows of unlike direction (cosine below 1 - 4e-6). Same seed and machine, same result,
    whatever the `block` up to the rounding of sums in float32.

    `features`: float16 or float32 [N, d], of any length but zero. `block`: rows read at once; 1024 rows of
    8192 float32 stay in a processor's last cache, where the product finds them. `backend`: what finds the
    nearest centroids, torch or keops (of the extra `keops`). `progress(i, iterations, objective)` is
    called after each assignment, `i` updates made so far. Raises ConfigError for k outside 1..N or a backend
    that is not installed, InputError for a row that is all zero or not finite.
    """
    _check(features, k, iterations, block, seed)
    block = min(block, max(1, block * features.shape[1] // k))  # (block, k) is no larger than (block, d)
    data = _Rows(features, torch.device(device), block, nearest_by(backend))
    history: list[float] = []

    def assign(centroids: Tensor, *, update: bool) -> _Assignment:
        assignment = data.assign(centroids, update=update)
        history.append(float(assignment.cosines.mean(dtype=np.float64)))
        if progress is not None:
            progress(min(len(history) - 1, iterations), iterations, history[-1])
        return assignment

    start = np.sort(np.random.default_rng(seed).choice(len(features), k, replace=False))
    centroids = torch.stack([data.row(row) for row in start.tolist()])  # (k, d)
    labels = None
    for _ in range(iterations):
        now = assign(centroids, update=True)
        if labels is not None and np.array_equal(labels, now.labels):
            break
        labels = now.labels
        centroids = _directions(now.sums, otherwise=centroids)
        _refill_empty(centroids, now, data)
    else:
        now = assign(centroids, update=False)
    for _ in range(k):  # a refilled cluster is not emptied again, so k rounds are enough
        if not _refill_empty(centroids, now, data):
            break
        now = assign(centroids, update=False)
    return Clusters(now.labels, centroids.cpu().numpy(), tuple(history))


@dataclass(frozen=True, eq=False)
class _Assignment:
    labels: NDArray[np.int64]  # [N]
    cosines: NDArray[np.float32]  # [N], of each row to its centroid
    sums: Tensor  # [k, d], of the unit rows of each cluster; zero where not asked for


class _Rows:
    """The rows of a store in float32, a block at a time, and the factors that make them unit vectors."""

    def __init__(self, features: Features, device: torch.device, block: int, nearest: Nearest) -> None:
        self.features = features
        self.block = block
        self.nearest = nearest
        n, d = features.shape
        self._buffer = torch.empty((min(block, n), d), device=device)  # one for all blocks
        self._inverse = torch.empty(n, device=device)  # 1 / norm of the first `_measured` rows
        self._measured = 0

    def __len__(self) -> int:
        return len(self.features)

    def row(self, row: int) -> Tensor:
        """One unit row, float32[d]."""
        x = self._read(row, row + 1)
        return x[0] * self._inverse_norms(x, row)

    def assign(self, centroids: Tensor, *, update: bool) -> _Assignment:
        """Each row to the centroid of largest cosine, the first of equals."""
        k = len(centroids)
        labels = np.empty(len(self), dtype=np.int64)
        cosines = np.empty(len(self), dtype=np.float32)
        sums = torch.zeros_like(centroids)
        for start in range(0, len(self), self.block):
            rows = slice(start, min(start + self.block, len(self)))
            x = self._read(rows.start, rows.stop)  # (b, d)
            if rows.stop > self._measured:
                self._inverse[rows] = self._inverse_norms(x, start)
                self._measured = rows.stop
            inverse = self._inverse[rows]  # (b,)
            values, nearest = self.nearest(x, centroids)  # a row's length does not matter
            labels[rows] = nearest.cpu().numpy()
            cosines[rows] = (values * inverse).cpu().numpy()
            if update:
                sums += _sums(x, inverse, nearest, k)
        return _Assignment(labels, cosines, sums)

    def _read(self, start: int, stop: int) -> Tensor:
        """Rows as they are stored, float32[b, d]; overwritten by the next read."""
        with warnings.catch_warnings():  # torch warns of a read-only memmap, which is only read here
            warnings.simplefilter("ignore", UserWarning)
            stored = torch.from_numpy(np.asarray(self.features[start:stop]))
        return self._buffer[: stop - start].copy_(stored)

    @staticmethod
    def _inverse_norms(x: Tensor, start: int) -> Tensor:
        norms = torch.linalg.vector_norm(x, dim=1)  # (b,)
        sound = (norms > 0) & norms.isfinite()
        if not bool(sound.all()):
            bad = int(sound.int().argmin())
            what = "all zero" if float(norms[bad]) == 0 else "not finite"
            raise InputError(f"features: row {start + bad} is {what}: it has no direction; exclude the row")
        inverse: Tensor = norms.reciprocal()
        return inverse


def _sums(x: Tensor, weights: Tensor, labels: Tensor, k: int) -> Tensor:
    """Weighted sum of each cluster's rows, float32[k, d], added in row order on every device."""
    order = labels.argsort(stable=True)
    sizes = labels.bincount(minlength=k)
    starts = sizes.cumsum(0) - sizes
    sums: Tensor = embedding_bag(order, x, starts, mode="sum", per_sample_weights=weights[order])
    return sums


def _directions(sums: Tensor, *, otherwise: Tensor) -> Tensor:
    """`sums` made unit length; a cluster that is empty, or whose rows cancel out, keeps its centroid."""
    norms = torch.linalg.vector_norm(sums, dim=1, keepdim=True)  # (k, 1)
    kept = (norms < 1e-6).squeeze(1)
    sums.div_(norms.clamp_min(1e-6))  # in place: two arrays of centroids are all there ever is
    sums[kept] = otherwise[kept]
    return sums


def _refill_empty(centroids: Tensor, now: _Assignment, data: _Rows) -> int:
    """Move the centroids of empty clusters onto rows far from theirs, in place; returns how many moved.

    Rows are taken by rising cosine, never the only row of a cluster, and never two of one direction, so a
    moved centroid is the nearest of its row from then on. Empty clusters cost the objective nothing.
    """
    sizes = np.bincount(now.labels, minlength=len(centroids))
    empty = np.flatnonzero(sizes == 0).tolist()
    if not empty:
        return 0
    candidates = np.flatnonzero((now.cosines < SAME) & (sizes[now.labels] > 1))
    candidates = candidates[np.argsort(now.cosines[candidates], kind="stable")]
    moved = 0
    for row in candidates[: 32 * len(empty) + 256].tolist():
        if moved == len(empty):
            break
        x = data.row(row)  # (d,)
        if moved and float((centroids[empty[:moved]] @ x).max()) >= SAME:
            continue
        centroids[empty[moved]] = x
        moved += 1
    return moved


def _file(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    return file / FILE if file.is_dir() else file


def _check(features: Features, k: int, iterations: int, block: int, seed: int) -> None:
    shape = tuple(features.shape)
    if len(shape) != 2 or 0 in shape:
        raise InputError(
            f"spherical_kmeans(features of shape {shape}): must be (rows, dimensions), not empty"
        )
    if k < 1:
        raise ConfigError(f"spherical_kmeans(k={k}): must be at least 1")
    if k > shape[0]:
        raise ConfigError(f"spherical_kmeans(k={k}): must be at most the number of rows, {shape[0]}; lower k")
    if iterations < 0 or block < 1:
        raise ConfigError(
            f"spherical_kmeans(iterations={iterations}, block={block}): must be at least 0 and 1"
        )
    if seed < 0:
        raise ConfigError(f"spherical_kmeans(seed={seed}): must be 0 or more")
