"""KeOps against torch: the same nearest centroids, or an error that says how to get it."""

import importlib.util
import shutil
import sys

import numpy as np
import pytest
import torch

from clusterucb.errors import ConfigError
from clusterucb.features.kmeans import nearest_by, spherical_kmeans

keops = pytest.mark.skipif(
    importlib.util.find_spec("pykeops") is None, reason="PyKeOps is not installed (extra `keops`)"
)
compiled = pytest.mark.skipif(
    shutil.which("g++") is None and not torch.cuda.is_available(), reason="KeOps compiles: no g++, no CUDA"
)


def rows(n, d, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32))


@keops
@compiled
@pytest.mark.whole
@pytest.mark.filterwarnings("ignore")  # of KeOps: what it compiles and where
def test_keops_finds_the_clusters_that_torch_finds():
    x, centroids = rows(200, 24).round(), rows(7, 24, seed=1).round()  # whole numbers: products are exact
    centroids[5] = centroids[2]  # of equals the first
    for by_torch, by_keops in zip(
        nearest_by("torch")(x, centroids), nearest_by("keops")(x, centroids), strict=True
    ):
        assert by_keops.tolist() == by_torch.tolist()
    x = rows(200, 24)
    one, other = (spherical_kmeans(x.numpy(), 6, backend=name, block=64) for name in ("torch", "keops"))
    assert (one.labels == other.labels).all()
    assert other.centroids == pytest.approx(one.centroids, abs=1e-5)
    assert other.history == pytest.approx(one.history, abs=1e-6)


def test_keops_that_is_not_installed_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pykeops", None)
    with pytest.raises(ConfigError, match=r"--kmeans-backend keops needs PyKeOps.*clusterucb\[keops\]"):
        spherical_kmeans(rows(4, 3).numpy(), 2, backend="keops")
