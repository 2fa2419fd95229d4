"""Spherical k-means over a store of features that need not fit in memory.

Knows vectors that can be sliced by rows, and torch; nothing of gradients or of selection. Rows are compared
by cosine; a centroid is the direction of the sum of its rows (Dhillon and Modha, 2001). The store is read
block by block, one pass an iteration: about `block * d * 10 + k * d * 20` bytes, and 24 a row. The nearest
centroid of every row of a block, where the time goes, is found by torch or by KeOps.

Rows that all share a direction, as Adam's momentum is one, are all alike: one cluster then has a third of
them, and dozens have one row each. Centred, by a pass more for the mean unit row, they are compared by what
they differ in (Mu and Viswanath 2018, arXiv 1702.01417).

Several processes each read rows of their own, and find the same to the bit as one: rows are cut into
stretches that do not depend on their number, a stretch's sums are rounded to whole multiples of a power of
two, and these add up exactly, in any order, in float64 (below 2^53 units).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor
from torch.nn.functional import embedding_bag

from clusterucb.errors import ConfigError, InputError
from clusterucb.features.influence import Vectors
from clusterucb.runtime.devices import rounded_to, to_device, to_host
from clusterucb.runtime.files import publish
from clusterucb.runtime.processes import ALONE, World

Backend = Literal["torch", "keops"]
Nearest = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(rows (b, d), centroids (k, d)) -> (largest inner product (b,), its centroid (b,), the first of equals)."""

_SAME = 1 - 1e-6  # rows of a larger cosine are one row to float32 arithmetic
_NOTHING = 1e-5  # a centred row so short is rounding
_LONGEST_STRETCH = 8  # blocks: the longer, the less often sums are rounded, which takes time
_STRETCHES = 32  # at least, of a store that has as many blocks: so that processes get like shares
_COSINE_UNITS = 2.0**32


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
        tensors = {"labels": self.labels, "centroids": self.centroids, "history": np.array(self.history)}
        with publish(file := _file(path)) as part:
            part.write_bytes(save(tensors))
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Clusters:
        """Read what `save` wrote. Raises InputError for a file that is missing or something else."""
        file = _file(path)
        try:
            tensors = load_file(file)
            return cls(tensors["labels"], tensors["centroids"], tuple(tensors["history"].tolist()))
        except FileNotFoundError:
            raise InputError(f"{file}: no such file; expected clusters written by Clusters.save()") from None
        except (SafetensorError, KeyError) as error:
            raise InputError(f"{file}: not clusters written by Clusters.save() ({error})") from None


def _file(path: str | os.PathLike[str]) -> Path:
    return Path(path) / "clusters.safetensors" if Path(path).is_dir() else Path(path)


@rounded_to("highest")  # whatever else the process rounds products to
def spherical_kmeans(
    features: Vectors,
    k: int,
    *,
    iterations: int = 20,
    seed: int = 0,
    centre: bool = False,
    device: str | torch.device = "cpu",
    block: int = 1024,
    backend: Backend = "torch",
    progress: Callable[[int, int, float], None] = lambda _done, _of, _objective: None,
    world: World = ALONE,
) -> Clusters:
    """Maximise the mean cosine of rows to the centroid of their cluster.

    Starts from `k` distinct rows by `seed` and updates the centroids `iterations` times at most, fewer once
    no label changes. An empty cluster moves to the row farthest from its centroid; at the end none is empty
    where there are `k` rows of unlike direction (cosine below 1 - 4e-6). Same seed and machine, same result,
    whatever the number of processes, and whatever the `block` up to the rounding of sums in float32.

    Args:
        features: (N, d), float16 or float32, N at least 1.
        k: clusters, at most N.
        iterations: updates of the centroids.
        seed: of the first centroids.
        centre: take the mean of the unit rows from each, and compare what is left; a row that is the mean
            stays as it is. Centroids are then directions from the mean.
        device: where rows and centroids are compared.
        block: rows read at once; 1024 of 8192 float32 stay in a processor's last cache.
        backend: what finds the nearest centroids, torch or keops (of the extra `keops`).
        progress: `progress(i, iterations, objective)` after each assignment, `i` updates made so far.
        world: processes that share the work; each can read all rows, and all get the result.

    Raises:
        ConfigError: k is outside 1..N, or the backend is not installed.
        InputError: a row is all zero or not finite.
    """
    _check(features, k=(k, 1), iterations=(iterations, 0), block=(block, 1), seed=(seed, 0))
    block = min(block, max(1, block * features.shape[1] // k))  # (block, k) is no larger than (block, d)
    data = _Rows(features, torch.device(device), block, nearest_by(backend), world)
    if centre:
        data.centre()
    history: list[float] = []

    def assign(centroids: Tensor, before: _Assignment | None, *, update: bool) -> _Assignment:
        assignment = data.assign(centroids, before, update=update)
        history.append(assignment.objective)
        progress(min(len(history) - 1, iterations), iterations, history[-1])
        return assignment

    start = np.sort(np.random.default_rng(seed).choice(len(features), k, replace=False))
    centroids = torch.stack([data.row(row) for row in start.tolist()])  # (k, d)
    now = None
    for _ in range(iterations):
        now = assign(centroids, now, update=True)
        if not now.changed:
            break
        centroids = _directions(now.sums, data.units, otherwise=centroids)
        _refill_empty(centroids, now, data)
    else:
        now = assign(centroids, now, update=False)
    for _ in range(k):  # a refilled cluster is not emptied again, so k rounds are enough
        if not _refill_empty(centroids, now, data):
            break
        now = assign(centroids, now, update=False)
    labels = np.concatenate(world.gather(now.labels))
    return Clusters(labels, centroids.cpu().numpy(), tuple(history))


def _check(features: Vectors, **limits: tuple[int, int]) -> None:
    """Refuse no rows, or what is outside its limits: each name with a value and the least it may be."""
    shape = tuple(features.shape)
    if len(shape) != 2 or 0 in shape:
        raise InputError(
            f"spherical_kmeans(features of shape {shape}): must be (rows, dimensions), not empty"
        )
    for name, (value, least) in limits.items():
        if value < least:
            raise ConfigError(f"spherical_kmeans({name}={value}): must be at least {least}")
    if (k := limits["k"][0]) > shape[0]:
        raise ConfigError(f"spherical_kmeans(k={k}): must be at most the number of rows, {shape[0]}; lower k")


@dataclass(frozen=True, eq=False)
class _Assignment:
    labels: NDArray[np.int64]  # of this process's rows, [n]
    cosines: NDArray[np.float32]  # [n], of each of them to its centroid
    sums: Tensor  # [k, d], of the unit rows of each cluster, all processes', in units; zero if not asked for
    sizes: NDArray[np.int64]  # [k], all processes'
    objective: float  # the mean cosine of all processes' rows
    changed: int  # how many of all processes' labels are not as before


class _Rows:
    """The rows of a store in float32, a block at a time, and the factors that make them unit vectors."""

    def __init__(
        self, features: Vectors, device: torch.device, block: int, nearest: Nearest, world: World
    ) -> None:
        self.features, self.block, self.nearest, self.world = features, block, nearest, world
        n, d = features.shape
        self.stretch = block * max(1, min(_LONGEST_STRETCH, n // (block * _STRETCHES)))
        stretches = -(-n // self.stretch)
        ends = [stretches * rank // world.size * self.stretch for rank in (world.rank, world.rank + 1)]
        self.own = range(min(ends[0], n), min(ends[1], n))  # rows that this process assigns
        self.units = 2.0 ** (52 - n.bit_length())  # of 1: a sum of n numbers up to 1 stays below 2^53
        self._buffer = torch.empty((min(block, n), d), device=device)  # one for all blocks
        self._mean: Tensor | None = None  # of the unit rows, (d,), if it is taken from them
        self._inverse = torch.empty(len(self.own), device=device)  # 1 / norm of the first `_measured` of them
        self._measured = 0

    def row(self, row: int) -> Tensor:
        """One unit row, float32[d], whosever it is."""
        x = self._read(row, row + 1)
        return x[0] * _inverse_norms(x, row)

    def centre(self) -> None:
        """Take the mean of all processes' unit rows from every row that is read from now on."""
        total = torch.zeros(1, self.features.shape[1], dtype=torch.float64, device=self._buffer.device)
        for stretch in self._stretches():
            partial = torch.zeros(total.shape, device=total.device)
            for _rows, x, inverse in stretch:
                one = torch.zeros(len(x), dtype=torch.int64, device=total.device)
                partial += _sums(x, inverse * self.units, one, 1)
            total += partial.round_()
        mean = self.world.total(total)[0] / (self.units * len(self.features))
        self._mean, self._measured = mean.float(), 0

    def assign(self, centroids: Tensor, before: _Assignment | None, *, update: bool) -> _Assignment:
        """Each row to the centroid of largest cosine, the first of equals."""
        k = len(centroids)
        labels = np.empty(len(self.own), dtype=np.int64)
        cosines = np.empty(len(self.own), dtype=np.float32)
        sums = torch.zeros(centroids.shape if update else 0, dtype=torch.float64, device=centroids.device)
        for stretch in self._stretches():
            partial: Tensor | None = None
            found, places = list[tuple[Tensor, Tensor]](), list[slice]()
            for rows, x, inverse in stretch:
                values, nearest = self.nearest(x, centroids)  # a row's length does not matter
                found.append((nearest, values * inverse))
                places.append(rows)
                if update:
                    added = _sums(x, inverse * self.units, nearest, k)
                    partial = added if partial is None else partial.add_(added)
            if partial is not None:
                sums += partial.round_()
            # A GPU is waited for here alone, so that it is read for while it works, and not without end.
            whole = slice(places[0].start, places[-1].stop)
            labels[whole], cosines[whole] = to_host(*map(torch.cat, zip(*found, strict=True)))()
        changed = len(labels) if before is None else int((labels != before.labels).sum())
        mass = int(np.rint(cosines.astype(np.float64) * _COSINE_UNITS).astype(np.int64).sum())
        counts = torch.tensor([*np.bincount(labels, minlength=k).tolist(), mass, changed])
        *sizes, mass, changed = self.world.total(counts).tolist()
        objective = mass / _COSINE_UNITS / len(self.features)
        return _Assignment(labels, cosines, self.world.total(sums), np.array(sizes), objective, changed)

    def _stretches(self) -> Iterator[Iterator[tuple[slice, Tensor, Tensor]]]:
        """This process's rows, stretch by stretch, a block at a time: places, (b, d) and 1 / norm (b,)."""
        for first in range(0, len(self.own), self.stretch):
            yield self._blocks(first, min(first + self.stretch, len(self.own)))

    def _blocks(self, first: int, end: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        for start in range(first, end, self.block):
            rows = slice(start, min(start + self.block, end))
            x = self._read(self.own[rows.start], self.own[rows.stop - 1] + 1)  # (b, d)
            if rows.stop > self._measured:
                self._inverse[rows] = _inverse_norms(x, self.own[start])
                self._measured = rows.stop
            yield rows, x, self._inverse[rows]

    def far(self, now: _Assignment, most: int) -> list[int]:
        """Up to `most` rows by rising cosine, of equals the first; none is the only one of its cluster."""
        candidates = np.flatnonzero((now.cosines < _SAME) & (now.sizes[now.labels] > 1))
        candidates = candidates[np.argsort(now.cosines[candidates], kind="stable")][:most]
        found = self.world.gather((candidates + self.own.start, now.cosines[candidates]))
        rows, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
        in_order: list[int] = rows[np.argsort(cosines, kind="stable")][:most].tolist()
        return in_order

    def _read(self, start: int, stop: int) -> Tensor:
        """Rows as they are stored, or centred, float32[b, d]; overwritten by the next read."""
        with warnings.catch_warnings():  # torch warns of a read-only memmap, which is only read here
            warnings.simplefilter("ignore", UserWarning)
            stored = to_device(np.asarray(self.features[start:stop]), self._buffer.device)
        x = self._buffer[: stop - start].copy_(stored)
        return x if self._mean is None else _centred(x, self._mean, start)


def _centred(x: Tensor, mean: Tensor, start: int) -> Tensor:
    """Rows (b, d) made unit length, without the mean (d,), in place; one that is the mean stays as it is."""
    x.mul_(_inverse_norms(x, start)[:, None]).sub_(mean)
    x[torch.linalg.vector_norm(x, dim=1) < _NOTHING] += mean
    return x


def _inverse_norms(x: Tensor, start: int) -> Tensor:
    """1 / norm of rows (b, d), of which the first is row `start` of the store, (b,)."""
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
    in_order, order = labels.sort(stable=True)
    starts = torch.searchsorted(in_order, torch.arange(k, device=labels.device))
    sums: Tensor = embedding_bag(order, x, starts, mode="sum", per_sample_weights=weights[order])
    return sums


def _directions(sums: Tensor, units: float, *, otherwise: Tensor) -> Tensor:
    """`sums` made unit length; a cluster that is empty, or whose rows cancel out, keeps its centroid.

    Divided in place, float64[k, d] to float32: never are there more than two such arrays.
    """
    norms = torch.linalg.vector_norm(sums, dim=1, keepdim=True)  # (k, 1)
    kept = (norms < 1e-6 * units).squeeze(1)
    centroids: Tensor = sums.div_(norms.clamp_min(1e-6 * units)).float()
    centroids[kept] = otherwise[kept]
    return centroids


def _refill_empty(centroids: Tensor, now: _Assignment, data: _Rows) -> int:
    """Move the centroids of empty clusters onto rows far from theirs, in place; returns how many moved.

    Rows are taken by rising cosine, never the only row of a cluster, and never two of one direction, so a
    moved centroid is the nearest of its row from then on. Empty clusters cost the objective nothing.
    """
    empty = np.flatnonzero(now.sizes == 0).tolist()
    if not empty:
        return 0
    moved = 0
    for row in data.far(now, 32 * len(empty) + 256):
        if moved == len(empty):
            break
        x = data.row(row)  # (d,)
        if moved and float((centroids[empty[:moved]] @ x).max()) >= _SAME:
            continue
        centroids[empty[moved]] = x
        moved += 1
    return moved


def require_backend(backend: Backend) -> None:
    """Raise ConfigError where the package behind `backend` is not installed."""
    if backend == "keops":
        try:
            import pykeops
        except ImportError as error:
            raise ConfigError(
                f"--kmeans-backend keops needs PyKeOps ({error}): pip install 'clusterucb[keops]', "
                f"or leave it at torch"
            ) from None
        pykeops.set_verbose(False)


def nearest_by(backend: Backend) -> Nearest:
    """The function of one backend. Raises ConfigError where its package is not installed."""
    require_backend(backend)
    return {"torch": _torch, "keops": _keops}[backend]


def _torch(rows: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """One matrix product, (b, k) in memory."""
    values, nearest = (rows @ centroids.T).max(dim=1)
    return values, nearest


def _keops(rows: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Products are reduced as they are made; at the first use of each d KeOps compiles, by g++ or CUDA."""
    from pykeops.torch import LazyTensor

    products = LazyTensor(rows[:, None, :]) | LazyTensor(centroids[None, :, :])  # (b, k), symbolic
    values, nearest = products.max_argmax(dim=1)
    return values.view(-1), nearest.view(-1)
