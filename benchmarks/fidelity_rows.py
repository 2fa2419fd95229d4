"""What is found where rows are drawn by what is known of each, and where clusters are made without gradients.

    ucb_beta, stale order   the bandit, rows of a cluster best first by stale features and fresh directions
    linear_ucb              the posterior over rows, knowing the same
    linear_ucb, memory      the same at the last checkpoint, where the rows that it drew at the one before, at
                            the same budget, are known by their features there
    ucb_beta, hidden        the bandit over clusters of hidden states, without the gradients of all rows
    linear_ucb, hidden      the posterior over rows that are known by hidden states, and by the features of
                            those that it drew before at the same budget: at the warmup checkpoint, where a
                            run with such clusters selects by the bandit, too, and at the checkpoint before

linear_ucb depends on the budget from its first draw on, so each budget is a run of its own.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fidelity_features import fresh_folder, fresh_periods, hidden_folder, read_features, read_warmup
from numpy.typing import NDArray

from clusterucb.features.drawn import DrawnWriter
from clusterucb.features.influence import stored_influence
from clusterucb.features.kmeans import spherical_kmeans
from clusterucb.features.knowledge import Knowledge
from clusterucb.run.session import Session
from clusterucb.runtime.screen import Screen
from clusterucb.selection.bandit import Selection, select
from clusterucb.selection.budget import default_k
from clusterucb.selection.linear_ucb import linear_ucb
from clusterucb.selection.share import share
from clusterucb.steps.reselection import round_seed
from clusterucb.studies.simulate.grid import Grid
from clusterucb.studies.simulate.simulate import Truth

STALE_ORDER, LINEAR, MEMORY = "ucb_beta, stale order", "linear_ucb", "linear_ucb, memory"
HIDDEN, LINEAR_HIDDEN = "ucb_beta, hidden", "linear_ucb, hidden"
ROW_LEVEL = (STALE_ORDER, LINEAR, MEMORY, HIDDEN, LINEAR_HIDDEN)
OF_HIDDEN = (HIDDEN, LINEAR_HIDDEN)
LOW = (0.02,)  # budgets below the share that is kept, which need rows kept undrawn


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as one target sees it.

    Attributes:
        period: at whose start it is; 1 is the warmup checkpoint.
        features: of all rows there, (N, d).
        direction: of the target there, (1, d).
        scores: the rows' influence there, (N,).
    """

    period: int
    features: NDArray[np.float16]
    direction: NDArray[np.float32]
    scores: NDArray[np.float64]


def row_level(session: Session, grid: Grid, screen: Screen) -> Iterator[dict[str, Any]]:
    """A run for each target, later checkpoint, policy, budget and seed."""
    stale, hidden = read_warmup(session)[0].features, read_features(hidden_folder(session))
    rows, targets = len(stale), session.inputs.target.subtasks
    k = default_k(rows, share(min(grid.budgets), rows))
    clusters, of_hidden = (
        spherical_kmeans(features, k, iterations=grid.iterations, seed=grid.cluster_seed).labels
        for features in (stale, hidden[0].features)
    )
    known = Knowledge(stale)
    with screen.track("row by row", len(targets) * len(grid.seeds), "targets and seeds") as advance:
        for code, target in enumerate(targets):
            first, *later = checkpoints(session, code)
            likeness = stored_influence(hidden[0].features, hidden[1][code : code + 1])
            by_likeness = Knowledge(hidden[0].features, likeness)
            for seed in grid.seeds:
                for budget in sorted({*LOW, *grid.budgets}):
                    settings = {"budget": budget, "top_p": grid.top_p}
                    found = [
                        *_courses(clusters, known, later, seed, settings),
                        *_course(LINEAR_HIDDEN, of_hidden, by_likeness, [first, *later], seed, settings)[1:],
                    ]
                    if budget >= grid.top_p:
                        found += _of_bandit(clusters, of_hidden, known, later, seed, settings)
                    for name, at, selection in found:
                        yield _run(name, target, at, selection, k, seed, budget, grid.top_p)
                advance(1, target)


def checkpoints(session: Session, code: int) -> list[Checkpoint]:
    """The warmup checkpoint and the later ones, for the target of this code."""
    stored = {1: read_warmup(session)}
    stored |= {period: read_features(fresh_folder(session, period)) for period in fresh_periods(session)}
    found = []
    for period, (store, directions) in stored.items():
        direction = directions[code : code + 1]
        scores = stored_influence(store.features, direction)
        found.append(Checkpoint(period, np.asarray(store.features), direction, scores))
    return found


Found = tuple[str, Checkpoint, Selection]


def _courses(
    labels: NDArray[np.int64], known: Knowledge, later: Sequence[Checkpoint], seed: int, settings: Any
) -> list[Found]:
    """linear_ucb at each checkpoint by itself, and at the last one after what it drew at the one before."""
    through = _course(LINEAR, labels, known, later, seed, settings)
    alone = [found for at in later[1:] for found in _course(LINEAR, labels, known, [at], seed, settings)]
    return [through[0], *alone, *((MEMORY, at, selection) for _, at, selection in through[1:])]


def _course(
    name: str,
    labels: NDArray[np.int64],
    known: Knowledge,
    at: Sequence[Checkpoint],
    seed: int,
    settings: Any,
) -> list[Found]:
    """Selections by linear_ucb at one checkpoint after the other; each knows what those before it drew."""
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as folder:
        rounds: list[Path] = []
        for number, checkpoint in enumerate(at, start=1):
            selection = linear_ucb(
                labels,
                known.at(checkpoint.direction, rounds),
                lambda rows, scores=checkpoint.scores: scores[rows],
                seed=round_seed(seed, number),
                **settings,
            )
            found.append((name, checkpoint, selection))
            rounds.append(Path(folder) / str(number))
            rounds[-1].mkdir()
            drawn = np.sort(selection.drawn)
            with DrawnWriter(rounds[-1], checkpoint.features.shape[1]) as kept:
                kept.add(drawn, checkpoint.features[drawn])
    return found


def _of_bandit(
    labels: NDArray[np.int64],
    of_hidden: NDArray[np.int64],
    known: Knowledge,
    later: Sequence[Checkpoint],
    seed: int,
    settings: Any,
) -> Iterator[Found]:
    """ucb_beta with a draw order, and over other clusters."""
    for at in later:
        estimate = known.at(at.direction, features=False).estimate
        drawn_in_order = {"estimate": estimate, "cold_start": 0.0}
        for name, arms, more in ((STALE_ORDER, labels, drawn_in_order), (HIDDEN, of_hidden, {})):
            yield name, at, select(arms, lambda rows, at=at: at.scores[rows], seed=seed, **settings, **more)


def _run(
    name: str, target: str, at: Checkpoint, found: Selection, k: int, seed: int, budget: float, top_p: float
) -> dict[str, Any]:
    truth = Truth(at.scores, share(top_p, len(at.scores)))
    run = {"policy": name, "budget": budget, "k": k, "csp": 0.0, "seed": seed, "spent": found.spent}
    expected = {} if found.expected_change is None else {"expected_change": found.expected_change}
    return {"period": at.period, "target": target, **run, **measured(truth, found.rows), **expected}


def measured(truth: Truth, rows: NDArray[np.int64]) -> dict[str, float | None]:
    """What rows are worth, by measure; None where a number is not known, as JSON has no NaN."""
    found = truth.found(rows)._asdict()
    return {name: None if math.isnan(value) else value for name, value in found.items()}
