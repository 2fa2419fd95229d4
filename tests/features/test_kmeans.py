"""Spherical k-means against a naive float64 reference, and the promises about labels and empty clusters."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clusterucb.errors import ConfigError, InputError
from clusterucb.features.kmeans import Clusters, spherical_kmeans
from clusterucb.selection.budget import default_k


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def planted(n=600, d=24, k=6, noise=0.25, seed=0):
    """Rows around k directions."""
    rng = np.random.default_rng(seed)
    middles = unit(rng.normal(size=(k, d)))[rng.integers(0, k, n)]
    return unit(middles + noise * rng.normal(size=(n, d)) / np.sqrt(d)).astype(np.float32)


def naive_kmeans(features, k, iterations, seed):
    """float64, one row at a time, the same first rows; for data that leaves no cluster empty."""
    x = unit(features.astype(np.float64))
    centroids = x[np.sort(np.random.default_rng(seed).choice(len(x), k, replace=False))].copy()
    for _ in range(iterations):
        labels = np.array([int((centroids @ row).argmax()) for row in x])
        centroids = np.array([unit(x[labels == j].sum(axis=0)) for j in range(k)])
    labels = np.array([int((centroids @ row).argmax()) for row in x])
    return labels, centroids, float(np.mean([row @ centroids[j] for row, j in zip(x, labels, strict=True)]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("iterations", [0, 1, 3, 20])
def test_kmeans_equals_the_naive_float64_reference_whatever_the_block_and_the_lengths_of_rows(
    iterations, dtype
):
    lengths = np.random.default_rng(0).uniform(0.1, 9, (600, 1))
    for seed, block in enumerate((7, 64, 100, 600, 10**6)):
        features = (lengths * planted(noise=1.0, seed=seed)).astype(dtype)
        labels, centroids, objective = naive_kmeans(features, 8, iterations, seed)
        found = spherical_kmeans(features, 8, iterations=iterations, seed=seed, block=block)
        assert found.labels.tolist() == labels.tolist()
        assert found.centroids == pytest.approx(centroids, abs=1e-5)
        assert found.objective == pytest.approx(objective, abs=1e-6)


def sharing(n, **more):
    """Planted rows with one direction in common, some more of it than others, as Adam's momentum is one."""
    own, rng = planted(n, d=48, **more).astype(np.float64), np.random.default_rng(9)
    return unit(own + 2.2 * rng.lognormal(0, 0.7, (n, 1)) * unit(rng.normal(size=own.shape[1])))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_centred_kmeans_equals_the_naive_reference_on_rows_without_their_mean(dtype):
    for seed in range(4):
        features = sharing(400, noise=1.0, seed=seed).astype(dtype)
        x = unit(features.astype(np.float64))
        labels, centroids, objective = naive_kmeans(x - x.mean(0), 8, 5, seed)
        found = spherical_kmeans(features, 8, iterations=5, seed=seed, block=64, centre=True)
        assert found.labels.tolist() == labels.tolist()
        assert found.centroids == pytest.approx(centroids, abs=2e-5)
        assert found.objective == pytest.approx(objective, abs=1e-5)


def test_what_all_rows_share_makes_one_cluster_of_a_quarter_of_them_unless_it_is_taken_away():
    for seed in range(3):
        features = sharing(600, noise=0.5, k=12, seed=seed)
        assert 0.85 < np.linalg.norm(features.mean(0)) < 0.9
        raw, centred = (spherical_kmeans(features, 12, centre=centre).sizes for centre in (False, True))
        assert raw.max() > 600 / 4
        assert centred.max() < 600 / 5
        assert centred.min() > raw.min()


def test_rows_that_are_all_one_are_clustered_though_nothing_is_left_of_them():
    rows = np.repeat(unit(np.ones((1, 8))), 5, axis=0)
    assert spherical_kmeans(rows, 2, centre=True).labels.tolist() == [0] * 5


@settings(max_examples=100)
@given(st.data())
def test_no_cluster_is_empty_where_there_are_enough_unlike_rows(data):
    """Small integer vectors: many duplicates, parallel rows of other lengths, opposite rows."""
    d = data.draw(st.integers(1, 3))
    row = st.lists(st.integers(-2, 2), min_size=d, max_size=d).filter(any)
    features = np.array(data.draw(st.lists(row, min_size=1, max_size=24)), dtype=np.float32)
    k = data.draw(st.integers(1, len(features)))
    iterations, seed = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 9))
    found = spherical_kmeans(features, k, iterations=iterations, seed=seed, block=5)
    unlike = len({tuple(np.round(unit(x.astype(float)), 9) + 0.0) for x in features})
    used = int((found.sizes > 0).sum())
    assert used == k if k <= unlike else used == unlike
    cosines = unit(features) @ found.centroids.T
    assert cosines[np.arange(len(features)), found.labels] == pytest.approx(cosines.max(axis=1), abs=1e-6)
    assert (np.diff(found.history) > -1e-6).all()


@pytest.mark.parametrize("copies", [1, 30])
def test_all_empty_clusters_are_refilled_in_one_pass_though_the_farthest_rows_are_copies(copies):
    features = np.repeat(np.eye(6, dtype=np.float32), [500, *[copies] * 5], axis=0)
    for seed in range(10):
        for iterations in (0, 4):
            found = spherical_kmeans(features, 6, seed=seed, iterations=iterations)
            assert sorted(found.sizes) == [copies] * 5 + [500]
            assert len(found.history) <= 2 + iterations


def test_rows_that_cancel_out_keep_their_centroid_finite():
    found = spherical_kmeans(np.array([[1, 0], [-1, 0]] * 5, dtype=np.float32), 1)
    assert np.isfinite(found.centroids).all()
    assert np.linalg.norm(found.centroids) == pytest.approx(1)


def test_it_stops_when_no_label_changes():
    features = planted(noise=0.1)
    assert len(spherical_kmeans(features, 4, iterations=500).history) < 30


def test_the_store_is_read_by_blocks_and_not_changed():
    features = planted(n=500)
    before = features.copy()

    class Store:
        shape, longest = features.shape, 0

        def __len__(self):
            return len(features)

        def __getitem__(self, rows):
            Store.longest = max(Store.longest, rows.stop - rows.start)
            return features[rows]

    tracemalloc.start()
    spherical_kmeans(Store(), 5, block=40)
    peak = tracemalloc.get_traced_memory()[1]  # numpy's part
    tracemalloc.stop()
    assert Store.longest == 40
    assert peak < features.nbytes
    assert (features == before).all()


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_start():
    features = planted(noise=2.0)
    a, b, c = (spherical_kmeans(features, 9, seed=seed) for seed in (3, 3, 4))
    assert (a.labels == b.labels).all()
    assert (a.centroids == b.centroids).all()
    assert a.history == b.history != c.history


def test_progress_is_told_after_every_assignment():
    told = []
    features = planted(noise=2.0)
    found = spherical_kmeans(features, 5, iterations=3, progress=lambda *now: told.append(now))
    assert [i for i, _, _ in told] == [0, 1, 2, 3]
    assert {of for _, of, _ in told} == {3}
    assert tuple(objective for _, _, objective in told) == found.history


def test_clusters_survive_a_save_and_a_load(tmp_path):
    found = spherical_kmeans(planted(), 5)
    for path in (tmp_path, tmp_path / "other.safetensors"):
        file = found.save(path)
        loaded = Clusters.load(path)
        assert (loaded.labels == found.labels).all()
        assert (loaded.centroids == found.centroids).all()
        assert (loaded.history, loaded.k, loaded.objective) == (found.history, 5, found.objective)
        assert (loaded.labels.dtype, loaded.centroids.dtype) == (np.int64, np.float32)
        assert file.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clusters.safetensors", "other.safetensors"]


def test_a_missing_or_broken_file_of_clusters_is_named(tmp_path):
    with pytest.raises(InputError, match=r"clusters\.safetensors: no such file"):
        Clusters.load(tmp_path)
    (tmp_path / "x").write_bytes(b"not this")
    with pytest.raises(InputError, match=r"x: not clusters written by"):
        Clusters.load(tmp_path / "x")


@given(st.integers(1, 10**7), st.integers(0, 10**7))
def test_default_k_is_about_the_root_of_n_and_at_most_half_the_budget(n, budget_rows):
    assume(budget_rows <= n)
    k = default_k(n, budget_rows)
    assert k == max(1, min(round(n**0.5), budget_rows // 2))
    assert 1 <= k <= n


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        (np.eye(4), {"k": 0}, ConfigError, r"spherical_kmeans\(k=0\): must be at least 1"),
        (np.eye(4), {"k": 5}, ConfigError, r"k=5\): must be at most the number of rows, 4; lower k"),
        (np.eye(4), {"iterations": -1}, ConfigError, r"iterations=-1"),
        (np.eye(4), {"block": 0}, ConfigError, r"block=0"),
        (np.eye(4), {"seed": -1}, ConfigError, r"seed=-1\): must be at least 0"),
        (np.zeros((0, 4)), {}, InputError, r"shape \(0, 4\)"),
        (np.zeros(4), {}, InputError, r"shape \(4,\)"),
        (np.diag([1, 1, 0, 1]), {}, InputError, r"row 2 is all zero.*exclude the row"),
        (np.diag([1, 1, 1, np.nan]), {}, InputError, r"row 3 is not finite"),
    ],
)
def test_bad_input_is_refused_and_named(rows, options, error, message):
    with pytest.raises(error, match=message):
        spherical_kmeans(rows.astype(np.float32), **{"k": 2, "block": 3, **options})
