"""The rivals, against their formulas written out for one row after the other."""

from unittest.mock import Mock

import numpy as np
import pytest

from clusterucb.selection.known import Known
from clusterucb.selection.rivals import RIDGES, ClusterLess, Landmarks
from clusterucb.selection.selector import RowUCB, named_policy

N = 120
LABELS = np.arange(N) % 7


@pytest.fixture
def known():
    rng = np.random.default_rng(0)
    return Known(np.zeros(N), rng.normal(size=(N, 5)), np.zeros(N, np.int64))


def influence_of(known, noise=0.01):
    rng = np.random.default_rng(1)
    return known.features @ rng.normal(size=5) + noise * rng.normal(size=N)


def draws(policy, known, influence, **more):
    return policy.select(LABELS, known, influence, budget=0.25, top_p=0.1, **more)


@pytest.mark.parametrize("policy", [ClusterLess(), Landmarks()])
def test_a_rival_draws_its_budget_at_once_and_keeps_the_top_of_all_rows(policy, known):
    influence = Mock(side_effect=influence_of(known).take)
    found = draws(policy, known, influence)
    assert influence.call_count == 1
    assert len(set(found.drawn.tolist())) == found.spent == 30
    assert len(set(found.rows.tolist())) == 12
    assert found.scores.min() >= np.sort(found.learned)[-12]
    again, other = (draws(policy, known, influence, seed=seed) for seed in (0, 1))
    assert again.rows.tolist() == found.rows.tolist()
    assert other.drawn.tolist() != found.drawn.tolist()


def test_cluster_less_gives_every_member_the_mean_of_its_clusters_draws():
    scores = np.random.default_rng(2).normal(size=N)
    found = draws(ClusterLess(), None, scores.take)
    per_cluster = np.bincount(LABELS[found.drawn])
    assert per_cluster.max() - per_cluster.min() <= 1
    for row in range(N):
        own = [scores[d] for d in found.drawn if LABELS[d] == LABELS[row]]
        assert found.learned[row] == pytest.approx(sum(own) / len(own))


def test_of_equal_scores_rows_are_kept_uniformly():
    """Or the first source of a pool would be all that is kept of a cluster."""
    counts = np.zeros(N)
    for seed in range(400):
        counts[draws(ClusterLess(), None, np.ones(N).take, seed=seed).rows] += 1
    assert counts == pytest.approx(np.full(N, 40.0), abs=4.5 * 6)


def slow_landmarks(known, drawn, scores):
    """Ridge regression in the primal; the ridge by leaving each landmark out and fitting all others anew."""
    x, y = known.features[drawn], scores[drawn] - scores[drawn].mean()
    scale = np.trace(x @ x.T) / len(drawn)

    def weights(x, y, ridge):
        return np.linalg.solve(x.T @ x + ridge * scale * np.eye(x.shape[1]), x.T @ y)

    def left_out(ridge):
        errors = []
        for i in range(len(drawn)):
            others = np.arange(len(drawn)) != i
            errors.append((x[i] @ weights(x[others], y[others], ridge) - y[i]) ** 2)
        return np.mean(errors)

    expected = scores[drawn].mean() + known.features @ weights(x, y, min(RIDGES, key=left_out))
    expected[drawn] = scores[drawn]
    return expected


@pytest.mark.parametrize("noise", [0.01, 2.0, 10.0])
def test_landmarks_are_a_kernel_ridge_regression_with_the_ridge_by_leave_one_out(known, noise):
    scores = influence_of(known, noise)
    found = draws(Landmarks(), known, scores.take)
    assert found.learned == pytest.approx(slow_landmarks(known, found.drawn, scores), rel=1e-6, abs=1e-8)


def test_landmarks_find_what_features_tell(known):
    scores = influence_of(known)
    found = draws(Landmarks(), known, scores.take)
    best = set(np.argsort(-scores)[:12].tolist())
    assert len(best & set(found.rows.tolist())) >= 11


@pytest.mark.parametrize("name", ["cluster_less", "landmarks"])
def test_a_rival_is_a_selector_as_the_others_are(name, known):
    scores = influence_of(known)
    selector = RowUCB(LABELS, named_policy(name), 0.25, 0.1)
    assert selector.asks == ("nothing" if name == "cluster_less" else "features")
    found = selector(scores.take, 3, None, known)
    assert found.rows.tolist() == draws(named_policy(name), known, scores.take, seed=3).rows.tolist()
    assert selector(scores.take, 3, None, known).drawn_clusters.tolist() == LABELS[found.drawn].tolist()
