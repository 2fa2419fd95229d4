"""Every run of a grid on problems whose answer is known: what a bandit would find, and what it would draw.

Knows influence as numbers and features as rows; nothing of where they come from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import ConfigError, InputError
from clusterucb.features.influence import Vectors
from clusterucb.features.kmeans import spherical_kmeans
from clusterucb.features.knowledge import DIM
from clusterucb.features.principal import principal
from clusterucb.runtime.screen import Advance, Screen
from clusterucb.selection.bandit import select
from clusterucb.selection.budget import Budget, default_k
from clusterucb.selection.known import Known
from clusterucb.selection.policies import Policy
from clusterucb.selection.selector import RowPolicy
from clusterucb.selection.share import share
from clusterucb.studies.simulate.grid import Grid

STALE = "stale"
UNIFORM = "uniform"

MEASURES = {
    "recall": "share of the full method's top rows that were found",
    "captured": "mean influence of the chosen rows over that of the best",
    "advantage": "how far the chosen rows' mean is on the way from the pool's (0) to the best's (1)",
}
"""The measures of a selection, by name."""

Track = Callable[[str, int, str], AbstractContextManager[Advance]]
"""As `Screen.track`."""

Rows = NDArray[np.int64]

Taken = tuple[float, Rows, Rows]
"""A budget, the rows drawn under it in order, and those that the best are taken of."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A pool of which everything is known.

    Attributes:
        name: for tables; no two problems of a simulation share one.
        scores: fresh influence of every row, (N,): what a bandit pays for.
        features: that the clusters are made of, (N, d), read by row slices.
        stale_scores: influence of every row as it was known before, (N,), where it was.
        estimate: what the influence of every row is thought to be before it is drawn, (N,), for policies over
            rows.

    Raises:
        InputError: not one finite number a row.
    """

    name: str
    scores: NDArray[np.float64]
    features: Vectors
    stale_scores: NDArray[np.float64] | None = None
    estimate: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        rows = (len(self.features),)
        for name in ("scores", "stale_scores", "estimate"):
            if (given := getattr(self, name)) is None:
                continue
            scores = np.asarray(given, np.float64)
            if scores.shape != rows:
                raise InputError(f"problem {self.name}: {name} of shape {scores.shape}: expected {rows}")
            if not (finite := np.isfinite(scores)).all():
                bad = int(finite.argmin())
                raise InputError(
                    f"problem {self.name}: row {bad} has {name} {scores[bad]}: expected a finite number"
                )
            object.__setattr__(self, name, scores)


class Found(NamedTuple):
    """How good the rows are that were chosen, against the best `keep` rows of all."""

    recall: float
    """|chosen and best| / keep."""
    captured: float
    """mean(chosen) / mean(best); NaN where the best's mean is not above 0, as the ratio says nothing then."""
    advantage: float
    """(mean(chosen) - mean(all)) / (mean(best) - mean(all)); 1 where no row is better than another."""


class Truth:
    """The influence of all rows, (N,), and the `keep` best of them, of equal rows the lower ones."""

    def __init__(self, scores: NDArray[np.float64], keep: int) -> None:
        order = np.argsort(-scores, kind="stable")
        self.keep = keep
        self._ranked = scores[order]  # (N,), falling
        self._rank = np.empty(len(scores), np.int64)  # of each row, 0 is the best
        self._rank[order] = np.arange(len(scores))

    def found(self, drawn: NDArray[np.int64]) -> Found:
        """What the best `keep` rows of `drawn` are worth; `drawn` holds at least so many, none twice.

        They are those of lowest rank, so a best row that is drawn is always chosen, and neither measure
        falls when rows are added to `drawn`.
        """
        ranks = np.sort(self._rank[drawn])[: self.keep]
        chosen, best = self._ranked[ranks].mean(), self._ranked[: self.keep].mean()
        everything = self._ranked.mean()
        return Found(
            recall=float((ranks < self.keep).mean()),
            captured=float(chosen / best) if best > 0 else float("nan"),
            advantage=float((chosen - everything) / (best - everything)) if best > everything else 1.0,
        )


@dataclass(frozen=True, eq=False)
class SimulatedArms:
    """The clusters as they are, whatever was drawn."""

    labels: NDArray[np.int64]  # (N,), the cluster of each row
    sizes: NDArray[np.int64]  # (k,)
    influence: NDArray[np.float64]  # (k,), mean over all rows of each; NaN for a cluster without rows


@dataclass(frozen=True, eq=False)
class Outcome:
    """One run of one policy, judged by what scoring all rows would tell.

    Besides the policies that were given there are two of reference. `uniform`: rows drawn uniformly, without
    clusters (k 1, csp 0), whose expected recall is the budget. `stale`, where a problem has stale
    scores: the rows that these alone rank highest, without a look at any row (budget 0, k 0).

    Attributes:
        problem, policy: their names.
        budget, k, csp, seed: of this run.
        spent: rows whose influence was looked at.
        recall, captured, advantage: see `Found`.
        draws: of each arm, (k,).
        arms: what is true of them.
    """

    problem: str
    policy: str
    budget: float
    k: int
    csp: float
    seed: int
    spent: int
    recall: float
    captured: float
    advantage: float
    draws: NDArray[np.int64] = field(repr=False)
    arms: SimulatedArms = field(repr=False)


def simulate(
    problems: Sequence[Problem],
    policies: Mapping[str, Policy | RowPolicy],
    grid: Grid = Grid(),  # noqa: B008 - a frozen value
    *,
    track: Track | None = None,
) -> list[Outcome]:
    """Try every policy with every setting of the grid on every problem.

    A run's draws depend neither on its budget nor, before the budget ends, on what is left of it: `select`
    with a smaller budget draws a prefix of the same rows, the last batch cut short. So each policy runs
    once, at the largest budget, and the smaller ones are read off its draws. It follows that for one seed
    recall, captured and advantage never fall as the budget grows. A `RowPolicy`, whose draws depend on the
    budget from the first on, runs once for each, without a cold start. A policy that keeps a state of its
    own, or random numbers other than `arms.rng`, must not carry them from one run into the next.

    Args:
        problems: at least one.
        policies: by the names that outcomes carry.
        grid: the settings to try.
        track: where progress is shown.

    Returns:
        An outcome for every combination, by problem, k, csp, policy, seed and rising budget; after each
        problem's, those of reference.

    Raises:
        ConfigError: a setting that does not fit a problem, or a `RowPolicy` for one without an estimate,
            before anything of it is simulated.
    """
    _check_names("problems", [problem.name for problem in problems])
    _check_names("policies", list(policies))
    if taken := {STALE, UNIFORM} & policies.keys():
        raise ConfigError(f"simulate(policies): {taken.pop()!r} is the name of a reference; take another")
    track = track or Screen(quiet=True).track
    return [outcome for problem in problems for outcome in _Runner(problem, policies, grid, track).outcomes()]


def _check_names(what: str, names: list[str]) -> None:
    if not names:
        raise ConfigError(f"simulate({what}): must hold at least one")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"simulate({what}): {twice[0]!r} is there twice; each needs a name of its own")


def _arms(labels: Rows, scores: NDArray[np.float64], k: int) -> SimulatedArms:
    sizes = np.bincount(labels, minlength=k)
    with np.errstate(invalid="ignore"):  # 0 / 0 of a cluster without rows
        return SimulatedArms(labels, sizes, np.bincount(labels, scores, minlength=k) / sizes)


class _Runner:
    """The runs of one problem."""

    def __init__(
        self, problem: Problem, policies: Mapping[str, Policy | RowPolicy], grid: Grid, track: Track
    ) -> None:
        self.problem, self.policies, self.grid, self.track = problem, policies, grid, track
        self.scores, self.budgets = problem.scores, sorted(grid.budgets)
        n = len(self.scores)
        if not (keep := share(grid.top_p, n)):
            raise ConfigError(f"top_p {grid.top_p}: is less than one of the {n} rows of {problem.name}")
        self.truth = Truth(self.scores, keep)
        by_row = [name for name, policy in policies.items() if isinstance(policy, RowPolicy)]
        if by_row and problem.estimate is None:
            raise ConfigError(
                f"policy {by_row[0]}: needs what is known of the rows of {problem.name} before they are "
                f"drawn; give --clusters-from (in Python Problem(estimate=...)), or leave the policy out"
            )

    @cached_property
    def known(self) -> Known:
        """What a policy over rows is told."""
        assert self.problem.estimate is not None
        groups = np.zeros(len(self.scores), np.int64)
        return Known(self.problem.estimate, principal(self.problem.features, DIM), groups)

    def outcomes(self) -> Iterator[Outcome]:
        """All, those of reference last."""
        n = len(self.scores)
        default = default_k(n, share(self.budgets[0], n))
        for k in dict.fromkeys(default if k is None else k for k in self.grid.ks):
            yield from self._clustered(k)
        yield from self._uniform()
        yield from self._stale()

    def _clustered(self, k: int) -> Iterator[Outcome]:
        """All runs over one clustering."""
        grid, arms = self.grid, _arms(self._labels(k), self.scores, k)
        for csp in grid.csps:  # of the smallest budget: the others have more room
            Budget(self.budgets[0], csp, grid.top_p).cold_draws(arms.sizes.tolist())
        runs = list(itertools.product(grid.csps, self.policies, grid.seeds))
        with self.track("simulate", len(runs), "runs") as advance:
            for csp, name, seed in runs:
                taken = self._taken(arms.labels, self.policies[name], csp, seed)
                yield from self._judged(name, csp, seed, taken, arms)
                advance(1, name)

    def _labels(self, k: int) -> Rows:
        with self.track(f"k-means, k {k}", self.grid.iterations, "iterations") as advance:
            return spherical_kmeans(
                self.problem.features,
                k,
                iterations=self.grid.iterations,
                seed=self.grid.cluster_seed,
                centre=self.grid.centre,
                progress=lambda done, _of, mean: advance(min(done, 1), f"mean cosine {mean:.4f}"),
            ).labels

    def _taken(self, labels: Rows, policy: Policy | RowPolicy, csp: float, seed: int) -> Iterator[Taken]:
        look, top_p = self.scores.take, self.grid.top_p
        if isinstance(policy, RowPolicy):
            for budget in self.budgets:
                found = policy.select(labels, self.known, look, budget=budget, top_p=top_p, seed=seed)
                yield budget, found.drawn, found.rows
            return
        selection = select(
            labels,
            look,
            policy,
            budget=self.budgets[-1],
            cold_start=csp,
            top_p=top_p,
            draw_batch=self.grid.draw_batch,
            seed=seed,
        )
        yield from self._prefixes(selection.drawn)

    def _prefixes(self, drawn: Rows) -> Iterator[Taken]:
        """Each budget's part of the draws (T,) of the largest."""
        for budget in self.budgets:
            prefix = drawn[: share(budget, len(self.scores))]
            yield budget, prefix, prefix

    def _uniform(self) -> Iterator[Outcome]:
        """Rows in uniformly random order."""
        n = len(self.scores)
        arms = _arms(np.zeros(n, np.int64), self.scores, 1)
        for seed in self.grid.seeds:
            drawn = np.random.default_rng(seed).permutation(n)
            yield from self._judged(UNIFORM, 0.0, seed, self._prefixes(drawn), arms)

    def _stale(self) -> Iterator[Outcome]:
        """The rows that are best by what was known before, if anything was."""
        if (stale := self.problem.stale_scores) is not None:
            best = np.argsort(-stale, kind="stable")[: self.truth.keep]
            nothing = np.empty(0, np.int64)
            arms = SimulatedArms(nothing, nothing, np.empty(0))
            yield from self._judged(STALE, 0.0, 0, [(0.0, nothing, best)], arms)

    def _judged(
        self, policy: str, csp: float, seed: int, taken: Iterable[Taken], arms: SimulatedArms
    ) -> Iterator[Outcome]:
        """One outcome a budget."""
        problem, k = self.problem.name, len(arms.sizes)
        for budget, drawn, found in taken:
            measures = self.truth.found(found)
            draws = np.bincount(arms.labels[drawn], minlength=k)
            yield Outcome(problem, policy, budget, k, csp, seed, len(drawn), *measures, draws, arms)
