"""Microseconds a draw of the bandit, by policy and size, and against statistics recomputed at every draw.

    python benchmarks/bandit.py                       # about four minutes
    python benchmarks/bandit.py --draws 20000 --reference-every 100

A draw is one call of the influence: choosing the arm, drawing `--draw-batch` rows, looking their scores up
in an array, and recording them. Setting up and the cold start are not counted. Times are the process's own,
not the clock's; on a shared machine they still vary, so each is the fastest of `--repeat` runs.

The quadratic reference computes all statistics from the whole history for each draw, as the published code
does. Its draws would be the same, so it is timed at every `--reference-every`-th draw of one run of
`--reference-draws`, from the first to the last, and checked to choose the same arm there.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clusterucb.selection.bandit import Selection, select
from clusterucb.selection.policies import POLICIES, Policy, policy

SIZES = (
    (10_000, 100),
    (100_000, 100),
    (1_000_000, 100),
    (100_000, 1_000),
    (1_000_000, 1_000),
    (100_000, 10_000),
    (1_000_000, 10_000),
)
REFERENCE_SIZE = (400_000, 100)


def timed(
    chosen: Policy, clusters: NDArray[np.int64], scores: NDArray[np.float64], draws: int, draw_batch: int
) -> tuple[float, Selection]:
    """Microseconds of one draw, the mean over `draws` draws after the cold start; and what was drawn."""
    ticks: list[float] = []

    def influence(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        ticks.append(time.process_time())
        return scores[rows]

    n, k = len(clusters), clusters.max() + 1
    budget = min(1.0, (k + draws * draw_batch) / n)
    found = select(
        clusters, influence, chosen, budget=budget, cold_start=0.0, top_p=budget, draw_batch=draw_batch
    )
    return (ticks[-1] - ticks[1]) / (len(ticks) - 2) * 1e6, found


def recomputed(name: str, arms: Sequence[int], scores: Sequence[float], sizes: Sequence[int]) -> int:
    """The arm to draw next, from all draws so far and nothing else."""
    history = defaultdict(list)
    for arm, score in zip(arms, scores, strict=True):
        history[arm].append(score)
    tau = np.quantile(scores, 0.75) if "thresh" in name else 0.0
    best, best_score = -1, (-math.inf, 0.0)
    for arm in sorted(history):
        x = np.array(history[arm])
        if len(x) == sizes[arm]:
            continue
        largest = 0.0
        match name:
            case "ucb_beta":
                score = x.mean() + x.std()
            case "ucb1":
                score = x.mean() + math.sqrt(2 * math.log(len(scores)) / len(x))
            case "ucb_threshhard":
                score = (x >= tau).mean()
                largest = 0.0 if score else x.max()  # decides where no arm reaches tau
            case "ucb_threshnormal":
                score = (x.mean() - tau) / max(x.std(), 1e-12)
        if (score, largest) > best_score:
            best, best_score = arm, (score, largest)
    return best


def against_reference(name: str, draws: int, every: int) -> str:
    """How many times faster than the reference, and the microseconds of a draw of both."""
    n, k = REFERENCE_SIZE
    clusters, scores = problem(n, k)
    ours, found = timed(policy(name), clusters, scores, draws, 1)
    arms, drawn, sizes = found.drawn_clusters.tolist(), found.drawn_scores.tolist(), np.bincount(clusters)
    at = range(found.cold, found.spent, every)
    agreed, started = 0, time.process_time()
    for t in at:
        agreed += recomputed(name, arms[:t], drawn[:t], sizes) == arms[t]
    slow = (time.process_time() - started) / len(at) * 1e6
    return f"{slow / ours:.0f}x ({slow:,.0f} / {ours:.1f}; same arm {agreed} of {len(at)})"


def problem(n: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    clusters = rng.permutation(np.arange(n) % k)
    return clusters, rng.normal(size=n) + 0.5 * rng.normal(size=k)[clusters]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=5_000, help="draws timed at each size")
    parser.add_argument("--draw-batch", type=int, default=1, help="rows a draw")
    parser.add_argument("--repeat", type=int, default=5, help="the fastest of so many runs")
    parser.add_argument("--reference-draws", type=int, default=80_000)
    parser.add_argument("--reference-every", type=int, default=500, help="1: every draw; hours")
    options = parser.parse_args()

    print(f"| microseconds a draw of {options.draw_batch} rows | {' | '.join(POLICIES)} |")
    print("|---" * (1 + len(POLICIES)) + "|")
    first: dict[str, float] = {}
    for n, k in SIZES:
        draws, pool = min(options.draws, (n // 2) // options.draw_batch), problem(n, k)
        cells = []
        for name in POLICIES:
            runs = [timed(policy(name), *pool, draws, options.draw_batch) for _ in range(options.repeat)]
            fastest = min(microseconds for microseconds, _ in runs)
            cells.append(f"{fastest:.1f} ({fastest / first.setdefault(name, fastest):.1f}x)")
        print(f"| N {n:,}, k {k:,} | {' | '.join(cells)} |", flush=True)
    draws, every = options.reference_draws, options.reference_every
    cells = [against_reference(name, draws, every) for name in POLICIES[:-1]]
    n, k = REFERENCE_SIZE
    print(f"| quadratic reference, {draws:,} draws, N {n:,}, k {k:,} | {' | '.join(cells)} | - |")


if __name__ == "__main__":
    main()
