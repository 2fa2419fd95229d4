"""What is found where rows are drawn by what is known of each, on the stored features.

    ucb_beta, stale order   the bandit, rows of a cluster best first by stale features and fresh directions
    linear_ucb              the posterior over rows, knowing the same
    linear_ucb, memory      the same at the last checkpoint, where the rows that it drew at the one before, at
                            the same budget, are known by their features there

They depend on the budget from their first draw on, so each budget is a run of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from fidelity_features import fresh_folder, read_features
from numpy.typing import NDArray

from clusterucb.clustering.kmeans import default_k, spherical_kmeans
from clusterucb.gradients.influence import stored_influence
from clusterucb.gradients.principal import principal
from clusterucb.knowledge import DIM
from clusterucb.progress import Screen
from clusterucb.selection.bandit import Selection, select
from clusterucb.selection.known import Known
from clusterucb.selection.linear_ucb import linear_ucb
from clusterucb.selection.share import share
from clusterucb.session import Session
from clusterucb.simulation.grid import Grid
from clusterucb.simulation.truth import Truth

STALE_ORDER, LINEAR, MEMORY = "ucb_beta, stale order", "linear_ucb", "linear_ucb, memory"
ROW_LEVEL = (STALE_ORDER, LINEAR, MEMORY)
LOW = (0.02,)  # budgets below the share that is kept, which need rows kept undrawn


def row_level(session: Session, cases: Sequence[Any], grid: Grid, screen: Screen) -> Iterator[dict[str, Any]]:
    """A run for each case, policy, budget and seed."""
    rows = len(cases[0].problem.scores)
    features = cases[0].problem.features
    k = default_k(rows, share(min(grid.budgets), rows))
    labels = spherical_kmeans(features, k, iterations=grid.iterations, seed=grid.cluster_seed).labels
    components = principal(features, DIM)
    earlier: dict[tuple[str, float, int], NDArray[np.int64]] = {}
    last = max(case.period for case in cases)
    total = len(cases) * len(grid.seeds)
    with screen.track("row by row", total, "runs") as advance:
        for case in sorted(cases, key=lambda case: case.period):
            scores, estimate = case.problem.scores, case.half_fresh
            truth = Truth(scores, share(grid.top_p, rows))
            fresh = None if case.period < last else _between(session, cases, case)
            for seed in grid.seeds:
                for budget in (*LOW, *grid.budgets):
                    selections: dict[str, Selection] = {}
                    common = {"budget": budget, "top_p": grid.top_p, "seed": seed}
                    if budget >= grid.top_p:
                        selections[STALE_ORDER] = select(
                            labels, lambda r, y=scores: y[r], estimate=estimate, cold_start=0.0, **common
                        )
                    known = Known(estimate, components, np.zeros(rows, np.int64))
                    selections[LINEAR] = linear_ucb(labels, known, lambda r, y=scores: y[r], **common)
                    if fresh is None:
                        earlier[case.target, budget, seed] = selections[LINEAR].drawn
                    else:
                        drawn = earlier[case.target, budget, seed]
                        known = remembered(known, drawn, fresh[drawn])
                        selections[MEMORY] = linear_ucb(labels, known, lambda r, y=scores: y[r], **common)
                    for name, found in selections.items():
                        yield _run(case, name, budget, k, seed, found, truth)
                advance(1, case.target)


def remembered(known: Known, rows: NDArray[np.int64], influence: NDArray[np.float64]) -> Known:
    """The same, with newer estimates of some rows."""
    estimate, age = known.estimate.copy(), np.ones_like(known.age)
    estimate[rows], age[rows] = influence, 0
    return Known(estimate, known.features, age)


def _between(session: Session, cases: Sequence[Any], case: Any) -> NDArray[np.float64]:
    """Influence of the features at the checkpoint before on the directions at this one, (N,)."""
    before = max(other.period for other in cases if other.period < case.period)
    features, _ = read_features(fresh_folder(session, before))
    _, directions = read_features(fresh_folder(session, case.period))
    code = session.target.subtasks.index(case.target)
    return stored_influence(features.features, directions[code : code + 1])


def _run(
    case: Any, name: str, budget: float, k: int, seed: int, found: Selection, truth: Truth
) -> dict[str, Any]:
    run = {"policy": name, "budget": budget, "k": k, "csp": 0.0, "seed": seed, "spent": found.spent}
    expected = {} if found.expected_change is None else {"expected_change": found.expected_change}
    return {"period": case.period, "target": case.target, **run, **measured(truth, found.rows), **expected}


def measured(truth: Truth, rows: NDArray[np.int64]) -> dict[str, float | None]:
    """What rows are worth, by measure; None where a number is not known, as JSON has no NaN."""
    found = truth.found(rows)._asdict()
    return {name: None if math.isnan(value) else value for name, value in found.items()}
