"""The nearest centroid of every row of a block: where k-means spends its time, by torch or by KeOps.

Knows two tensors on one device; nothing of stores, iterations or empty clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from clusterucb.errors import ConfigError

__all__ = ["Backend", "Nearest", "nearest_by", "require_backend"]

Backend = Literal["torch", "keops"]
Nearest = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(rows (b, d), centroids (k, d)) -> (largest inner product (b,), its centroid (b,), the first of equals)."""


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
