"""How much of what the full method would select a bandit finds, by policy, budget and number of clusters.

A problem is one target at one later checkpoint: the fresh influence of every row, which the full method would
rank, and clusters of the stale features, as the method has them. No model is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fidelity_features import fresh_folder, fresh_periods, hidden_folder, read_features, read_warmup
from fidelity_rows import measured, row_level
from numpy.typing import NDArray
from pandas import Series

from clusterucb.errors import InputError
from clusterucb.features.influence import stored_influence
from clusterucb.run.session import Session
from clusterucb.runtime.files import check_made_with, read_json, write_json
from clusterucb.runtime.screen import Screen
from clusterucb.selection.policies import POLICIES, policy
from clusterucb.selection.share import share
from clusterucb.studies.simulate.grid import Grid
from clusterucb.studies.simulate.simulate import Problem, Truth, simulate

MEASURES = ("recall", "captured", "advantage")
STALE_FIRST = "stale first"


@dataclass(frozen=True)
class Case:
    """One target at one later checkpoint.

    Attributes:
        period: at whose start the checkpoint is.
        target: its name.
        problem: fresh scores (N,), the stale features (N, d), stale scores (N,).
        half_fresh: influence of the stale features on the fresh direction, (N,): gradients of the target
            rows only.
        likeness: of hidden states at the warmup checkpoint to the target's, (N,).
    """

    period: int
    target: str
    problem: Problem
    half_fresh: NDArray[np.float64]
    likeness: NDArray[np.float64]


def recall_results(path: Path, session: Session, grid: Grid, screen: Screen) -> dict[str, Any]:
    """Everything that the stores can tell, computed if `path` is not there.

    Returns:
        `runs`: an object for each simulated run. `drift`: for each case, how stale and fresh scores agree.

    Raises:
        InputError: the features are not there yet.
        MismatchError: the results there are of another grid or other features.
    """
    made_with: dict[str, object] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in asdict(grid).items()
    }
    if not hidden_folder(session).exists():
        raise InputError(f"{hidden_folder(session)}: not there yet; run the stage features first")
    for folder in (fresh_folder(session, period) for period in fresh_periods(session)):
        if not folder.exists():
            raise InputError(f"{folder}: not there yet; run the stage features first")
        made_with[f"features {folder.name}"] = read_features(folder)[0].manifest["made_with"]["weights"]
    if not path.exists():
        every = list(cases(session))
        found = {"made_with": made_with, **evaluated(every, grid, screen)}
        found["runs"] += row_level(session, grid, screen)
        write_json(path, found)
    results = read_json(path)
    check_made_with(results["made_with"], made_with, str(path))
    return results


def cases(session: Session) -> Iterator[Case]:
    """Every target at every later checkpoint."""
    stale, stale_directions = read_warmup(session)
    hidden, hidden_directions = read_features(hidden_folder(session))
    for period in fresh_periods(session):
        fresh, directions = read_features(fresh_folder(session, period))
        for code, target in enumerate(session.inputs.target.subtasks):
            direction = directions[code : code + 1]
            problem = Problem(
                f"{target}, period {period}",
                stored_influence(fresh.features, direction),
                stale.features,
                stored_influence(stale.features, stale_directions[code : code + 1]),
            )
            half_fresh = stored_influence(stale.features, direction)
            likeness = stored_influence(hidden.features, hidden_directions[code : code + 1])
            yield Case(period, target, problem, half_fresh, likeness)


def evaluated(found: list[Case], grid: Grid, screen: Screen) -> dict[str, Any]:
    """All runs of the grid, and the drift, of these cases."""
    policies = {name: policy(name) for name in POLICIES}
    runs = simulate([case.problem for case in found], policies, grid, track=screen.track)
    by_name = {case.problem.name: case for case in found}
    names = ("policy", "budget", "k", "csp", "seed", "spent", *MEASURES)
    simulated = [
        {
            "period": by_name[run.problem].period,
            "target": by_name[run.problem].target,
            **{name: _plain(getattr(run, name)) for name in names},
        }
        for run in runs
    ]
    return {
        "rows": len(found[0].problem.scores),
        "runs": simulated + [run for case in found for run in stale_first(case, grid)],
        "drift": [drift(case, grid.top_p) for case in found],
    }


def stale_first(case: Case, grid: Grid) -> Iterator[dict[str, Any]]:
    """A run a budget that spends it, without a bandit, on the rows of the highest stale influence."""
    assert case.problem.stale_scores is not None
    order = np.argsort(-case.problem.stale_scores, kind="stable")
    truth = Truth(case.problem.scores, share(grid.top_p, len(order)))
    for budget in sorted(grid.budgets):
        spent = share(budget, len(order))
        run = {"policy": STALE_FIRST, "budget": budget, "k": 0, "csp": 0.0, "seed": 0, "spent": spent}
        yield {"period": case.period, "target": case.target, **run, **measured(truth, order[:spent])}


def drift(case: Case, top_p: float) -> dict[str, Any]:
    """How far scores known before the checkpoint agree with the fresh ones.

    `stale` ranks by stale features and stale directions; `half_fresh` by stale features and fresh directions;
    `hidden` by hidden states.
    """
    fresh, stale = case.problem.scores, case.problem.stale_scores
    assert stale is not None
    truth = Truth(fresh, share(top_p, len(fresh)))
    found: dict[str, Any] = {"period": case.period, "target": case.target}
    known = {"stale": stale, "half_fresh": case.half_fresh, "hidden": case.likeness}
    for name, scores in known.items():
        chosen = np.argsort(-scores, kind="stable")[: truth.keep]
        found[name] = {**measured(truth, chosen), "spearman": spearman(scores, fresh)}
    return found


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, equal values sharing their mean rank."""
    return float(np.corrcoef(Series(a).rank(), Series(b).rank())[0, 1])
