"""Every run of a grid on problems whose answer is known: what a bandit would find, and what it would draw.

Knows influence as numbers and features as rows; nothing of where they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import ConfigError, InputError
from clusterucb.features.kmeans import Features, default_k, spherical_kmeans
from clusterucb.features.knowledge import DIM
from clusterucb.features.principal import principal
from clusterucb.runtime.screen import Advance
from clusterucb.selection.bandit import select
from clusterucb.selection.checks import check_counts
from clusterucb.selection.known import Known
from clusterucb.selection.linear_ucb import LinearUCB, linear_ucb
from clusterucb.selection.policies import Policy
from clusterucb.selection.share import cold_draws, share
from clusterucb.studies.simulate.grid import Grid
from clusterucb.studies.simulate.truth import Truth

STALE = "stale"
UNIFORM = "uniform"

Track = Callable[[str, int, str], AbstractContextManager[Advance]]
"""As `Screen.track`."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A pool of which everything is known.

    Attributes:
        name: for tables; no two problems of a simulation share one.
        scores: fresh influence of every row, (N,): what a bandit pays for.
        features: that the clusters are made of, (N, d), read by row slices.
        stale_scores: influence of every row as it was known before, (N,), where it was.
        estimate: what the influence of every row is thought to be before it is drawn, (N,), for `linear_ucb`.

    Raises:
        InputError: not one finite number a row.
    """

    name: str
    scores: NDArray[np.float64]
    features: Features
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


@dataclass(frozen=True, eq=False)
class SimulatedArms:
    """The clusters as they are, whatever was drawn."""

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
        recall, captured, advantage: see `truth.Found`.
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


@contextmanager
def _unseen(_label: str, _total: int, _unit: str) -> Iterator[Advance]:
    yield lambda _amount, note="": None


def simulate(
    problems: Sequence[Problem],
    policies: Mapping[str, Policy | LinearUCB],
    grid: Grid = Grid(),  # noqa: B008 - a frozen value
    *,
    track: Track = _unseen,
) -> list[Outcome]:
    """Try every policy with every setting of the grid on every problem.

    A run's draws depend neither on its budget nor, before the budget ends, on what is left of it: `select`
    with a smaller budget draws a prefix of the same rows, the last batch cut short. So each policy runs
    once, at the largest budget, and the smaller ones are read off its draws. It follows that for one seed
    recall, captured and advantage never fall as the budget grows. `LinearUCB`, whose draws depend on the
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
        ConfigError: a setting that does not fit a problem, or `LinearUCB` for one without an estimate, before
            anything of it is simulated.
    """
    _check_names("problems", [problem.name for problem in problems])
    _check_names("policies", list(policies))
    outcomes: list[Outcome] = []
    for problem in problems:
        n = len(problem.scores)
        if not (keep := share(grid.top_p, n)):
            raise ConfigError(f"top_p {grid.top_p}: is less than one of the {n} rows of {problem.name}")
        runner = _Runner(problem, Truth(problem.scores, keep), grid)
        runner.check_known(policies)
        smallest = share(min(grid.budgets), n)
        for k in dict.fromkeys(default_k(n, smallest) if k is None else k for k in grid.ks):
            outcomes += runner.clustered(k, policies, track)
        outcomes += runner.uniform()
        outcomes += runner.stale()
    return outcomes


class _Runner:
    """The runs of one problem."""

    def __init__(self, problem: Problem, truth: Truth, grid: Grid) -> None:
        self.problem, self.truth, self.grid = problem, truth, grid
        self.budgets = sorted(grid.budgets)

    def check_known(self, policies: Mapping[str, Policy | LinearUCB]) -> None:
        """Refuse to draw row by row where nothing is known of rows."""
        by_row = [name for name, policy in policies.items() if isinstance(policy, LinearUCB)]
        if by_row and self.problem.estimate is None:
            raise ConfigError(
                f"policy {by_row[0]}: needs what is known of the rows of {self.problem.name} before they are "
                f"drawn; give --clusters-from (in Python Problem(estimate=...)), or leave the policy out"
            )

    @cached_property
    def known(self) -> Known:
        """What linear_ucb is told."""
        estimate = self.problem.estimate
        assert estimate is not None
        components = principal(self.problem.features, DIM)
        return Known(estimate, components, np.zeros(len(estimate), np.int64))

    def clustered(
        self, k: int, policies: Mapping[str, Policy | LinearUCB], track: Track
    ) -> Iterator[Outcome]:
        """All runs over one clustering."""
        grid, scores = self.grid, self.problem.scores
        with track(f"k-means, k {k}", grid.iterations, "iterations") as advance:
            clusters = spherical_kmeans(
                self.problem.features,
                k,
                iterations=grid.iterations,
                seed=grid.cluster_seed,
                progress=lambda done, _of, mean: advance(min(done, 1), f"mean cosine {mean:.4f}"),
            )
        self._check_cold_starts(clusters.sizes)
        arms = _arms(clusters.labels, scores, k)
        with track("simulate", len(grid.csps) * len(policies) * len(grid.seeds), "runs") as advance:
            for csp in grid.csps:
                for name, policy in policies.items():
                    for seed in grid.seeds:
                        if isinstance(policy, LinearUCB):
                            yield from self._by_row(name, policy, csp, seed, clusters.labels, arms)
                            advance(1, name)
                            continue
                        selection = select(
                            clusters.labels,
                            lambda rows: scores[rows],
                            policy,
                            budget=self.budgets[-1],
                            cold_start=csp,
                            top_p=grid.top_p,
                            draw_batch=grid.draw_batch,
                            seed=seed,
                        )
                        yield from self._by_budget(name, csp, seed, selection.drawn, clusters.labels, arms)
                        advance(1, name)

    def _by_row(
        self,
        name: str,
        policy: LinearUCB,
        csp: float,
        seed: int,
        labels: NDArray[np.int64],
        arms: SimulatedArms,
    ) -> Iterator[Outcome]:
        """One outcome a budget, each a run of its own."""
        k, scores = len(arms.sizes), self.problem.scores
        for budget in self.budgets:
            found = linear_ucb(
                labels,
                self.known,
                lambda rows: scores[rows],
                policy,
                budget=budget,
                top_p=self.grid.top_p,
                seed=seed,
            )
            draws = np.bincount(labels[found.drawn], minlength=k)
            measures = self.truth.found(found.rows)
            yield Outcome(self.problem.name, name, budget, k, csp, seed, found.spent, *measures, draws, arms)

    def uniform(self) -> Iterator[Outcome]:
        """Rows in uniformly random order."""
        n = len(self.problem.scores)
        labels = np.zeros(n, np.int64)
        arms = _arms(labels, self.problem.scores, 1)
        for seed in self.grid.seeds:
            drawn = np.random.default_rng(seed).permutation(n)
            yield from self._by_budget(UNIFORM, 0.0, seed, drawn, labels, arms)

    def stale(self) -> Iterator[Outcome]:
        """The rows that are best by what was known before, if anything was."""
        if (stale := self.problem.stale_scores) is not None:
            chosen = np.argsort(-stale, kind="stable")[: self.truth.keep]
            nothing, no_arms = np.empty(0, np.int64), SimulatedArms(np.empty(0, np.int64), np.empty(0))
            found = self.truth.found(chosen)
            yield Outcome(self.problem.name, STALE, 0.0, 0, 0.0, 0, 0, *found, nothing, no_arms)

    def _by_budget(
        self,
        policy: str,
        csp: float,
        seed: int,
        drawn: NDArray[np.int64],
        labels: NDArray[np.int64],
        arms: SimulatedArms,
    ) -> Iterator[Outcome]:
        """One outcome a budget, from the draws (T,) of the largest, in order."""
        k = len(arms.sizes)
        for budget in self.budgets:
            spent = share(budget, len(labels))
            prefix = drawn[:spent]
            draws = np.bincount(labels[prefix], minlength=k)
            found = self.truth.found(prefix)
            yield Outcome(self.problem.name, policy, budget, k, csp, seed, spent, *found, draws, arms)

    def _check_cold_starts(self, sizes: NDArray[np.int64]) -> None:
        n, top_p = len(self.problem.scores), self.grid.top_p
        for csp in self.grid.csps:
            first = {arm: cold_draws(csp, size) for arm, size in enumerate(sizes.tolist()) if size}
            for budget in self.budgets:
                spend, keep = share(budget, n), self.truth.keep
                check_counts(n, first, spend, keep, budget=budget, cold_start=csp, top_p=top_p)


def _arms(labels: NDArray[np.int64], scores: NDArray[np.float64], k: int) -> SimulatedArms:
    sizes = np.bincount(labels, minlength=k)
    with np.errstate(invalid="ignore"):  # 0 / 0 of a cluster without rows
        return SimulatedArms(sizes, np.bincount(labels, scores, minlength=k) / sizes)


def _check_names(what: str, names: Iterable[str]) -> None:
    names = list(names)
    if not names:
        raise ConfigError(f"simulate({what}): must hold at least one")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"simulate({what}): {twice[0]!r} is there twice; each needs a name of its own")
    if what == "policies" and (taken := {STALE, UNIFORM} & set(names)):
        raise ConfigError(f"simulate(policies): {taken.pop()!r} is the name of a reference; take another")
