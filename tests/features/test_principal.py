"""Principal components by subspace iteration, against the singular value decomposition."""

import numpy as np
import pytest

from clusterucb.features.principal import principal


@pytest.mark.parametrize("block", [1024, 70])
def test_inner_products_are_kept_as_well_as_the_best_rank_keeps_them(block):
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(400, 300)) * (1 / np.arange(1, 301)) @ rng.normal(size=(300, 300))
    features = (mixed / np.linalg.norm(mixed, axis=1)[:, None]).astype(np.float16)
    found = principal(features, 20, block=block)
    exact = features.astype(np.float64)
    u, s, _ = np.linalg.svd(exact, full_matrices=False)
    best = (u[:, :20] * s[:20]) @ (u[:, :20] * s[:20]).T
    products = exact @ exact.T
    error = np.linalg.norm(found.astype(np.float64) @ found.T - products)
    assert found.shape == (400, 20)
    assert error < 1.02 * np.linalg.norm(best - products)


def test_components_come_by_size():
    features = np.random.default_rng(0).normal(size=(90, 120)).astype(np.float32)
    sizes = np.linalg.norm(principal(features, 5), axis=0)
    assert (np.diff(sizes) < 0).all()


@pytest.mark.parametrize("d", [7, 20])
def test_features_of_no_more_dimensions_stay_as_they_are(d):
    features = np.random.default_rng(0).normal(size=(50, d)).astype(np.float16)
    assert principal(features, 20, block=13).tolist() == features.astype(np.float32).tolist()
