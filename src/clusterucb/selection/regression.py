"""Bayesian linear regression of a number a row has on what is known of all rows. numpy only.

    y_i = z_i b + x_i w + c_arm(i) + e_i
    w ~ N(0, t s2 I),  c ~ N(0, u s2),  e ~ N(0, s2),  b flat

with z_i few columns whose weights nothing is assumed of, x_i a row's features and c an effect of its arm. The
two ratios t and u are those, of a grid, that make what was seen likeliest with b and s2 integrated out
(restricted likelihood: Patterson and Thompson, Biometrika 1971). All is exact, and in terms of weights, not
of rows: what has been seen is kept as sums, so that a fit costs the same after a million rows as after ten.

Knows arrays only; nothing of influence, budgets or policies.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # t, over a row's mean square length
EFFECTS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)  # u
JITTER = 1e-9  # of the mean square of a column: keeps columns that say the same from dividing by zero


class Regression:
    """What has been seen of y so far.

    Args:
        fixed: z, (N, F); the first column is 1.
        features: x, (N, D), float32 or float64; D may be 0.
        arms: the arm of each row, 0 to K - 1, (N,).
    """

    def __init__(self, fixed: Floats, features: NDArray[np.floating], arms: Rows) -> None:
        self.fixed, self.features, self.arms = fixed, features, arms
        self.lengths = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))  # |x|, (N,)
        size, arms_count = fixed.shape[1] + features.shape[1], int(arms.max()) + 1
        self.seen = 0
        self.counts = np.zeros(arms_count)  # n, (K,)
        self._sums = np.zeros((arms_count, size))  # sum of (z, x) by arm, (K, P)
        self._totals = np.zeros(arms_count)  # sum of y by arm, (K,)
        self._products = np.zeros((size, size))  # sum of (z, x)(z, x)', (P, P)
        self._cross = np.zeros(size)  # sum of (z, x) y, (P,)
        self._square = 0.0  # sum of y^2

    def columns(self, rows: Rows) -> Floats:
        """(z, x) of some rows, (n, P)."""
        return np.concatenate([self.fixed[rows], self.features[rows]], axis=1, dtype=np.float64)

    def see(self, rows: Rows, values: Floats) -> None:
        """Count `values` (n,) of `rows` (n,)."""
        columns, arms = self.columns(rows), self.arms[rows]
        self.seen += len(rows)
        self.counts += np.bincount(arms, minlength=len(self.counts))
        np.add.at(self._sums, arms, columns)
        self._totals += np.bincount(arms, values, len(self._totals))
        self._products += columns.T @ columns
        self._cross += columns.T @ values
        self._square += float(values @ values)

    def fit(self) -> Posterior:
        """What is to be thought of all rows now; at least one row more than fixed columns was seen."""
        fits = [_Fit(self, effect) for effect in EFFECTS]
        best = max((likelihood, -i, t) for i, fit in enumerate(fits) for likelihood, t in fit.likelihoods())
        return Posterior(fits[-best[1]], best[2])


class _Fit:
    """The regression at one ratio u, with everything that does not depend on t."""

    def __init__(self, of: Regression, effect: float) -> None:
        self.of, self.effect = of, effect
        shrink = effect / (1 + effect * of.counts)  # (K,)
        weighted = shrink[:, None] * of._sums
        products = of._products - weighted.T @ of._sums  # the sums, with the arms' effects integrated out
        self.cross = cross = of._cross - weighted.T @ of._totals
        square = of._square - float(shrink @ of._totals**2)

        f = of.fixed.shape[1]
        scale = JITTER * np.diag(of._products)[:f] + 1e-300
        self.inner = np.linalg.inv(products[:f, :f] + np.diag(scale))  # (F, F)
        self.onto = self.inner @ products[:f, f:]  # (F, D)
        rest = products[f:, f:] - products[:f, f:].T @ self.onto  # (D, D), what the fixed columns leave
        values, self.vectors = np.linalg.eigh((rest + rest.T) / 2)
        self.values = np.maximum(values, 0)
        self.rotated = self.vectors.T @ (cross[f:] - self.onto.T @ cross[:f])  # (D,)
        self.left = square - float(cross[:f] @ self.inner @ cross[:f])  # sum of squares that b leaves
        self.trace = float(np.trace(products)) / max(of.seen, 1) + 1e-300
        effects = -0.5 * float(np.log1p(effect * of.counts).sum())
        self.known = effects + 0.5 * float(np.linalg.slogdet(self.inner)[1])

    def likelihoods(self) -> list[tuple[float, float]]:
        """(log restricted likelihood but for a constant, t) of every t."""
        free = self.of.seen - len(self.inner)
        found = []
        for t in np.array(WEIGHTS if len(self.values) else (0.0,)) / self.trace:
            penalty = 0.5 * float(np.log1p(t * self.values).sum())
            found.append((self.known - penalty - 0.5 * free * np.log(self.noise(t)), float(t)))
        return found

    def noise(self, t: float) -> float:
        """s2 at this t."""
        explained = float((t * self.rotated**2 / (1 + t * self.values)).sum())
        free = max(self.of.seen - len(self.inner), 1)
        return max((self.left - explained) / free, 1e-18)


class Posterior:
    """What is thought of every row, given what was seen, at the u of a fit and one t."""

    def __init__(self, fit: _Fit, t: float) -> None:
        self.of, of, f = fit.of, fit.of, len(fit.inner)
        self.noise = fit.noise(t)  # s2, of one row's own part
        self.prior = t  # variance of the weights of x before anything was seen, over s2
        middle = t / (1 + t * fit.values)  # covariance of the weights over s2, by eigenvector
        weights = fit.vectors @ (middle * fit.rotated)  # (D,)
        fixed = fit.inner @ fit.cross[:f] - fit.onto @ weights
        self.coefficients = np.concatenate([fixed, weights])  # of z and x, (P,)

        inner = (fit.vectors * middle) @ fit.vectors.T
        across = -fit.onto @ inner
        outer = fit.inner + fit.onto @ inner @ fit.onto.T
        self.covariance = np.block([[outer, across], [across.T, inner]])  # theirs, over s2, (P, P)

        self.open_effects = fit.effect / (1 + fit.effect * of.counts)  # variance given these, over s2, (K,)
        trust = self.open_effects * of.counts
        means = of._sums / np.maximum(of.counts, 1)[:, None]  # (K, P)
        self.centres = trust[:, None] * means  # what an arm's effect takes off a row's columns, (K, P)
        own = of._totals / np.maximum(of.counts, 1) - means @ self.coefficients
        self.effects = trust * own  # of the arms, (K,)

    def mean(self) -> Floats:
        """Expected y of every row, (N,)."""
        of, f = self.of, self.of.fixed.shape[1]
        linear = of.features @ self.coefficients[f:].astype(of.features.dtype)
        mean: Floats = of.fixed @ self.coefficients[:f] + linear.astype(np.float64) + self.effects[of.arms]
        return mean

    def variance_bound(self) -> Floats:
        """At least the variance of every row, (N,), for a few operations a row.

        By the triangle inequality in the norm of the covariance; what was seen makes the weights of x no less
        sure than they were, so theirs is at most `prior`.
        """
        of, f = self.of, self.of.fixed.shape[1]
        fixed = of.fixed - self.centres[of.arms, :f]
        sure = np.sqrt(np.maximum(np.einsum("nf,nf->n", fixed @ self.covariance[:f, :f], fixed), 0))
        length = of.lengths + np.linalg.norm(self.centres[:, f:], axis=1)[of.arms]
        bound: Floats = self.noise * ((sure + np.sqrt(self.prior) * length) ** 2 + self.open_effects[of.arms])
        return bound

    def variance(self, rows: Rows) -> Floats:
        """Variance of the expected y of some rows, without the noise of their own, (n,)."""
        arms = self.of.arms[rows]
        columns = self.of.columns(rows) - self.centres[arms]
        spread = np.einsum("np,np->n", columns @ self.covariance, columns)
        variance: Floats = self.noise * np.maximum(spread + self.open_effects[arms], 0)
        return variance
