"""The regression in terms of weights, against the same Gaussian process in terms of rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterucb.selection.regression import EFFECTS, Posterior, Regression, _Fit


def problem(seed, seen=0, n=70, dimensions=5, arms=6):
    """A regression that has seen so many of its rows, all values, and the rows in the order of seeing."""
    rng = np.random.default_rng(seed)
    features, arm = rng.normal(size=(n, dimensions)), rng.integers(0, arms, n)
    arm[:arms] = np.arange(arms)
    fixed = np.stack([np.ones(n), rng.normal(size=n)], 1)
    values = 0.3 + 0.5 * fixed[:, 1] + features @ rng.normal(size=dimensions) * 0.4
    values += rng.normal(size=arms)[arm] * 0.5 + rng.normal(size=n) * 0.3
    regression, order = Regression(fixed, features, arm), rng.permutation(n)
    regression.see(order[:seen], values[order[:seen]])
    return regression, values, order


def process(regression, rows, values, t, u):
    """Mean and variance of every row, noise and log likelihood, by the covariance matrix of the rows seen."""

    def covariance(a, b):
        x, arms = regression.features, regression.arms
        return t * x[a] @ x[b].T + u * (arms[a][:, None] == arms[b][None])

    every, z = np.arange(len(regression.arms)), regression.fixed
    seen = covariance(rows, rows) + np.eye(len(rows))
    inverse, free = np.linalg.inv(seen), len(rows) - z.shape[1]
    precision = z[rows].T @ inverse @ z[rows]
    b = np.linalg.solve(precision, z[rows].T @ inverse @ values[rows])
    left = values[rows] - z[rows] @ b
    noise = left @ inverse @ left / free
    mean = z @ b + covariance(every, rows) @ inverse @ left
    gap = z.T - z[rows].T @ inverse @ covariance(rows, every)
    variance = np.diag(covariance(every, every)) - np.einsum(
        "ij,ij->j", covariance(rows, every), inverse @ covariance(rows, every)
    )
    variance += np.einsum("ij,ij->j", gap, np.linalg.solve(precision, gap))
    likelihood = -0.5 * (np.linalg.slogdet(seen)[1] + np.linalg.slogdet(precision)[1] + free * np.log(noise))
    return mean, variance * noise, noise, likelihood


@pytest.mark.parametrize("seed", range(3))
def test_the_posterior_is_that_of_the_gaussian_process_over_rows(seed):
    regression, values, order = problem(seed, 30)
    rows = order[:30]
    for effect in EFFECTS:
        fit = _Fit(regression, effect)
        for likelihood, t in fit.likelihoods():
            mean, variance, noise, expected = process(regression, rows, values, t, effect)
            assert likelihood == pytest.approx(expected, abs=1e-4)
            found = Posterior(fit, t)
            assert found.noise == pytest.approx(noise, rel=1e-5)
            np.testing.assert_allclose(found.mean(), mean, atol=1e-5)
            np.testing.assert_allclose(found.variance(np.arange(70)), variance, rtol=1e-4, atol=1e-6)


def test_the_fit_is_the_likeliest_of_the_grid():
    regression, _, _ = problem(0, 30)
    fits = [_Fit(regression, effect) for effect in EFFECTS]
    (_, t), best = max(((of, fit) for fit in fits for of in fit.likelihoods()), key=lambda found: found[0])
    np.testing.assert_array_equal(regression.fit().mean(), Posterior(best, t).mean())


def test_what_is_seen_in_parts_is_what_is_seen_at_once():
    parts, values, order = problem(1)
    for rows in (order[:3], order[3:4], order[4:25]):
        parts.see(rows, values[rows])
    once, _, _ = problem(1, 25)
    np.testing.assert_allclose(parts.fit().mean(), once.fit().mean(), atol=1e-9)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(4, 60))
def test_no_variance_is_above_its_bound(seed, seen):
    posterior = problem(seed, seen)[0].fit()
    variance = posterior.variance(np.arange(70))
    assert (variance <= posterior.variance_bound() * (1 + 1e-9) + 1e-12).all()
    assert (variance >= 0).all()


def test_columns_that_say_the_same_are_harmless():
    rng = np.random.default_rng(0)
    fixed = np.ones((20, 3))  # the estimate is the same number for all rows
    regression = Regression(fixed, rng.normal(size=(20, 2)), np.zeros(20, np.int64))
    values = rng.normal(size=20)
    regression.see(np.arange(12), values[:12])
    posterior = regression.fit()
    assert np.isfinite(posterior.mean()).all()
    assert np.isfinite(posterior.variance(np.arange(20))).all()


def test_without_features_only_estimates_and_arms_speak():
    rng = np.random.default_rng(0)
    arms = np.repeat(np.arange(4), 10)
    regression = Regression(np.ones((40, 1)), np.zeros((40, 0)), arms)
    values = np.array([0.0, 1, 2, 3])[arms] + 0.01 * rng.normal(size=40)
    rows = np.arange(0, 40, 2)
    regression.see(rows, values[rows])
    np.testing.assert_allclose(
        regression.fit().mean(), [0.0, 1, 2, 3] @ (np.arange(4)[:, None] == arms), atol=0.15
    )
