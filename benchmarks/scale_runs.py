"""Ten million rows on a machine of two cores: the bandit and k-means with features made up, no model.

    python benchmarks/scale_runs.py bandit                       # half a minute, 0.5 GB of memory
    python benchmarks/scale_runs.py bandit --draw-batch 512 --arms many
    python benchmarks/scale_runs.py kmeans --k 1000              # some minutes, 640 MB in a temporary folder
    python benchmarks/scale_runs.py bandit kmeans --rows 20000   # a moment

The bandit looks scores up in an array, so that what is timed is deciding. k-means reads a store of float16
from disk, block by block as always; its features have few dimensions, so that two cores can do it: what grows
with the rows is all there. Seconds are the process's own; resident memory is the largest so far, before and
after.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import synthetic
from numpy.typing import NDArray

from clusterucb.features.encoding import ENCODINGS
from clusterucb.features.kmeans import spherical_kmeans
from clusterucb.features.store import StoredFeatures
from clusterucb.selection.bandit import select
from clusterucb.selection.budget import default_k
from clusterucb.selection.policies import policy
from clusterucb.selection.share import share

BLOCK = 1024


def run_bandit(options: argparse.Namespace) -> str:
    """Scores of which clusters explain a third; the cold start is not in the microseconds a draw."""
    n, k, rng = options.rows, _clusters(options), np.random.default_rng(0)
    labels = rng.integers(0, k, n)
    scores = rng.standard_normal(n, dtype=np.float32) + rng.normal(0, 0.7, k).astype(np.float32)[labels]
    asked: list[float] = []

    def influence(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        asked.append(time.process_time())
        return scores[rows]

    before, started = _resident(), time.process_time()
    found = select(
        labels,
        influence,
        policy(options.policy),
        budget=options.budget,
        draw_batch=options.draw_batch,
        draw_batch_arms=options.arms,
    )
    ended, drawn = time.process_time(), found.spent - found.cold
    return (
        f"bandit: {n:,} rows, k {k:,}, {options.policy}, {found.spent:,} draws, "
        f"{options.draw_batch} at a time of {options.arms}: {ended - started:.1f} s, "
        f"{(ended - asked[1]) / drawn * 1e6:.1f} microseconds a draw; "
        f"{_grown(before)}"
    )


def run_kmeans(options: argparse.Namespace) -> str:
    n, d, k = options.rows, options.dim, _clusters(options)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file = Path(folder, "features.f16")
        with file.open("wb") as out:
            for block in synthetic.features(n, d):
                out.write(block.tobytes())
        features = StoredFeatures(file, n, d, ENCODINGS["float16"])
        before, started, passes = _resident(), time.process_time(), 0

        def count(_iteration: int, _of: int, _mean: float) -> None:
            nonlocal passes
            passes += 1

        block = max(
            1, BLOCK * k // d
        )  # k-means shortens it so that (block, k) numbers are as many as (block, d)
        found = spherical_kmeans(features, k, iterations=options.iterations, block=block, progress=count)
        spent = time.process_time() - started
        size = file.stat().st_size
    return (
        f"k-means: {n:,} rows x {d}, k {k:,}, store {size / 2**20:,.0f} MiB, {passes} assignments: "
        f"{spent:.1f} s, {spent / (passes * n * k) * 1e9:.2f} ns a pair of row and cluster; "
        f"mean cosine {found.objective:.3f}; "
        f"{_grown(before)}"
    )


RUNS: dict[str, Callable[[argparse.Namespace], str]] = {"bandit": run_bandit, "kmeans": run_kmeans}


def _clusters(options: argparse.Namespace) -> int:
    return options.k or default_k(options.rows, share(options.budget, options.rows))


def _resident() -> float:
    """MiB, at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _grown(before: float) -> str:
    after = _resident()
    return f"resident {before:,.0f} MiB before, at most {after:,.0f} MiB"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", choices=sorted(RUNS))
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--k", type=int, help="by default the program's own for so many rows")
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--policy", default="ucb_beta")
    parser.add_argument("--draw-batch", type=int, default=8)
    parser.add_argument("--arms", choices=("one", "many"), default="one")
    parser.add_argument("--dim", type=int, default=32, help="of the features for k-means")
    parser.add_argument("--iterations", type=int, default=1, help="of k-means; one assignment more is made")
    parser.add_argument("--folder", help="where the store goes and is deleted from; by default the system's")
    options = parser.parse_args(arguments)
    for name in options.runs:
        print(RUNS[name](options), flush=True)


if __name__ == "__main__":
    main()
