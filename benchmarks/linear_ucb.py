"""What a round of linear_ucb takes: fit, score all rows, choose; no gradient in it.

    python benchmarks/linear_ucb.py --rows 1000000 --dim 64

Made-up features and influence. Prints seconds of wall clock and of processors for the mean round, and the
peak of memory; a matrix product of all rows with as many columns as they have is the yardstick.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from clusterucb.selection.known import Known
from clusterucb.selection.linear_ucb import LinearUCB, linear_ucb
from clusterucb.selection.share import share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--budget", type=float, default=0.05)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    clusters = rng.integers(0, asked.clusters, asked.rows)
    features = rng.standard_normal((asked.rows, asked.dim), np.float32)
    features += rng.standard_normal((asked.clusters, asked.dim), np.float32)[clusters]
    features /= np.linalg.norm(features, axis=1)[:, None]
    scores = features @ rng.standard_normal(asked.dim, np.float32) * 0.1
    scores = scores.astype(np.float64) + 0.02 * rng.standard_normal(asked.rows)
    known = Known(scores + 0.1 * rng.standard_normal(asked.rows), features, np.zeros(asked.rows, np.int64))

    times: list[tuple[float, float]] = []

    def influence(rows: np.ndarray) -> np.ndarray:
        times.append((time.monotonic(), time.process_time()))
        return scores[rows]

    found = linear_ucb(clusters, known, influence, LinearUCB(), budget=asked.budget)
    wall, cpu = (np.diff([t[i] for t in times]) for i in (0, 1))
    best = np.argsort(-scores)[: share(0.05, asked.rows)]
    started = (time.monotonic(), time.process_time())
    _ = features @ features[: asked.dim].T.copy()
    product = (time.monotonic() - started[0], time.process_time() - started[1])
    print(f"{asked.rows:,} rows, {asked.dim} dimensions, {asked.clusters:,} clusters, {found.spent:,} draws")
    print(f"a round: {wall.mean():.2f} s, {cpu.mean():.2f} s of processors (longest {wall.max():.2f} s)")
    print(
        f"a product of all rows with {asked.dim} columns: {product[0]:.2f} s, "
        f"{product[1]:.2f} s of processors"
    )
    print(f"recall {np.isin(best, found.rows).mean():.3f}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
