"""What a batch of draws costs in recall: of the true top rows, by policy, `draw_batch` and its arms.

    python benchmarks/batched_draws.py                   # a synthetic pool, about two minutes
    python benchmarks/batched_draws.py --run RUN         # the features and clusters of a run directory

The synthetic pool has 20,000 rows in 141 clusters of uneven sizes (Dirichlet). Of the variance of the
influence, 38 % lies between clusters, as in the demo's run (240 rows, 15 clusters); deviations within
clusters differ by a log-normal factor of sigma 0.5. A new pool is made for every seed. With `--run`, the
pool is the run's own, scored at its warmup checkpoint, and only the draws depend on the seed.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusterucb.selection.bandit import DrawBatchArms, select
from clusterucb.selection.policies import POLICIES, Policy, policy
from clusterucb.selection.share import share, top

Pool = tuple[NDArray[np.int64], NDArray[np.float64]]  # cluster and influence of each row


def synthetic(seed: int, n: int = 20_000, k: int = 141, between: float = 0.38) -> Pool:
    rng = np.random.default_rng(seed)
    clusters = rng.choice(k, n, p=rng.dirichlet(np.ones(k)))
    means = rng.normal(0, math.sqrt(between), k)
    deviations = math.sqrt(1 - between) * rng.lognormal(-0.125, 0.5, k)
    scores = means[clusters] + deviations[clusters] * rng.standard_normal(n)
    return clusters, (0.08 + 0.03 * scores).astype(np.float32).astype(np.float64)


def stored(run: Path) -> Pool:
    from clusterucb.features.influence import stored_influence
    from clusterucb.features.kmeans import Clusters
    from clusterucb.features.store import FeatureStore
    from clusterucb.run.directory import RunDir
    from clusterucb.steps.features import read_directions

    found = RunDir(run)
    directions, _ = read_directions(found.directions_at(1))
    labels = Clusters.load(found.clusters).labels
    return labels.astype(np.int64), stored_influence(FeatureStore(found.features).features, directions)


def recall(
    pool: Pool, chosen: Policy, draw_batch: int, arms: DrawBatchArms, seed: int, budget: float, top_p: float
) -> float:
    """The share of the true top rows that is drawn, and so kept."""
    clusters, scores = pool
    found = select(
        clusters,
        lambda rows: scores[rows],
        chosen,
        budget=budget,
        top_p=top_p,
        draw_batch=draw_batch,
        draw_batch_arms=arms,
        seed=seed,
    )
    return float(np.isin(top(scores, share(top_p, len(scores))), found.drawn).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run directory with features and clusters")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--draw-batch", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--top-p", type=float, default=0.05)
    options = parser.parse_args()

    own = stored(options.run) if options.run else None
    pools = [own or synthetic(seed) for seed in range(options.seeds)]

    def recalls(name: str, draw_batch: int, arms: DrawBatchArms) -> NDArray[np.float64]:
        rest = options.budget, options.top_p
        chosen = policy(name)
        return np.array(
            [recall(pool, chosen, draw_batch, arms, seed, *rest) for seed, pool in enumerate(pools)]
        )

    settings: list[tuple[int, DrawBatchArms]] = [
        (batch, arms) for batch in options.draw_batch for arms in ("one", "many")
    ]
    heads = [f"B {batch}, {arms}" for batch, arms in settings]
    print(
        f"| recall of the top {options.top_p:.0%}, budget {options.budget:.0%} | B 1 | {' | '.join(heads)} |"
    )
    print("|---" * (2 + len(settings)) + "|")
    for name in POLICIES:
        single = recalls(name, 1, "one")
        cells = [f"{single.mean():.3f}"]
        for batch, arms in settings:
            change = recalls(name, batch, arms) - single
            error = change.std() / math.sqrt(len(change))
            cells.append(f"{change.mean():+.3f} ± {error:.3f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
