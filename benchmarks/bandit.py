"""Microseconds a draw of the bandit, by policy and size, and against statistics recomputed at every draw.

    python benchmarks/bandit.py                       # about three minutes
    python benchmarks/bandit.py --draws 80000 --reference-draws 5000

A draw is one call of the influence: choosing the arm, drawing `--draw-batch` rows, looking their scores up
in an array, and recording them. Setting up and the cold start are not counted.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from clusterucb.selection.arms import Arms
from clusterucb.selection.bandit import select
from clusterucb.selection.policies import POLICIES, Policy, policy

SIZES = (
    (10_000, 100),
    (100_000, 100),
    (1_000_000, 100),
    (100_000, 1_000),
    (1_000_000, 1_000),
    (1_000_000, 10_000),
)


def microseconds(
    chosen: Policy, clusters: NDArray[np.int64], scores: NDArray[np.float64], draws: int, draw_batch: int
) -> float:
    """Of one draw, the mean over `draws` draws after the cold start."""
    ticks: list[float] = []

    def influence(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        ticks.append(time.perf_counter())
        return scores[rows]

    n, k = len(clusters), clusters.max() + 1
    budget = min(1.0, (k + draws * draw_batch) / n)
    select(clusters, influence, chosen, budget=budget, cold_start=0.0, top_p=budget, draw_batch=draw_batch)
    return (ticks[-1] - ticks[1]) / (len(ticks) - 2) * 1e6


class Recomputed:
    """The same decisions, all statistics computed anew from all draws, as in the published code."""

    def __init__(self, name: str, scores: NDArray[np.float64]) -> None:
        self.name = name
        self.scores = scores

    def __call__(self, arms: Arms) -> NDArray[np.float64]:
        history = defaultdict(list)
        ids, everything = arms.history()
        for arm, score in zip(ids.tolist(), everything.tolist(), strict=True):
            history[arm].append(score)
        tau = np.quantile(everything, 0.75) if "thresh" in self.name else 0.0
        return np.array(
            [self.score(np.array(history[arm]), tau, len(everything)) for arm in arms.ids.tolist()]
        )

    def score(self, x: NDArray[np.float64], tau: float, total: int) -> float:
        match self.name:
            case "ucb1":
                return float(x.mean() + math.sqrt(2 * math.log(total) / len(x)))
            case "ucb_threshhard":
                return float((x >= tau).mean())
            case "ucb_threshnormal":
                return float((x.mean() - tau) / max(x.std(), 1e-12))
        return float(x.mean() + x.std())


def problem(n: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    clusters = rng.permutation(np.arange(n) % k)
    return clusters, rng.normal(size=n) + 0.5 * rng.normal(size=k)[clusters]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=5_000, help="draws timed at each size")
    parser.add_argument("--draw-batch", type=int, default=1, help="rows a draw")
    parser.add_argument("--reference-draws", type=int, default=1_000, help="draws of the quadratic reference")
    parser.add_argument("--repeat", type=int, default=2, help="the fastest of so many runs")
    options = parser.parse_args()

    def fastest(chosen: Policy, n: int, k: int, draws: int) -> float:
        return min(
            microseconds(chosen, *problem(n, k), draws, options.draw_batch) for _ in range(options.repeat)
        )

    print(f"| microseconds a draw of {options.draw_batch} rows | {' | '.join(POLICIES)} |")
    print("|---" * (1 + len(POLICIES)) + "|")
    for n, k in SIZES:
        draws = min(options.draws, (n // 2) // options.draw_batch)
        cells = [f"{fastest(policy(name), n, k, draws):.1f}" for name in POLICIES]
        print(f"| N {n:,}, k {k:,} | {' | '.join(cells)} |", flush=True)
    n, k, draws = 100_000, 100, options.reference_draws
    cells = []
    for name in POLICIES[:-1]:
        slow = microseconds(Recomputed(name, problem(n, k)[1]), *problem(n, k), draws, options.draw_batch)
        cells.append(f"{slow / fastest(policy(name), n, k, draws):.0f}x")
    print(f"| quadratic reference, N {n:,}, k {k}, {draws:,} draws | {' | '.join(cells)} | - |")


if __name__ == "__main__":
    main()
