"""What the store's encodings cost: bytes a row, and the loss in the scores of period 1 against float16.

    python benchmarks/store.py                       # 20,000 made-up rows of 8192 dimensions, 9 subtasks
    python benchmarks/store.py runs/x runs/y         # also the features and directions of finished runs

recall: the share of the rows that float16 would select that is selected. gain kept: how far the mean true
score of the selected rows lies above the pool's mean, as a share of what float16 reaches; error: root mean
square of score minus true score, in standard deviations of the true scores.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import synthetic
from numpy.typing import NDArray

from clusterucb.features.encoding import ENCODINGS
from clusterucb.features.influence import stored_influence
from clusterucb.features.store import FeatureStore, FeatureWriter
from clusterucb.run.directory import RunDir
from clusterucb.selection.share import top
from clusterucb.steps.features import read_directions


def stored(features: Any, dtype: str, folder: Path, block: int = 1024) -> FeatureStore:
    """The same features in a store of another dtype."""
    rows, dim = features.shape
    with FeatureWriter(folder, rows, dim, {}, dtype) as writer:
        for start in range(0, rows, block):
            part = np.asarray(features[start : start + block], np.float16)
            writer.write(np.arange(start, start + len(part)), part, np.zeros(len(part)))
        writer.finish({})
    return FeatureStore(folder)


def line(name: str, size: int, true: NDArray[np.float64], found: NDArray[np.float64], share: float) -> str:
    keep = max(1, int(share * len(true)))
    best, chosen = top(true, keep), top(found, keep)
    recall = len(np.intersect1d(best, chosen)) / keep
    gain = (true[chosen].mean() - true.mean()) / (true[best].mean() - true.mean())
    error = np.sqrt(((found - true) ** 2).mean()) / true.std()
    correlation = np.corrcoef(true, found)[0, 1]
    return (
        f"| {name} | {size / len(true):,.0f} | {recall:.3f} | {gain:.3f} | {error:.4f} | {correlation:.5f} |"
    )


def table(features: Any, directions: NDArray[np.float32], share: float) -> None:
    true = stored_influence(features, directions)
    print(f"{len(true):,} rows, {len(directions)} subtasks; score {true.mean():.3f} +- {true.std():.3f}\n")
    print(f"| store | bytes a row | recall of the top {share:.0%} | gain kept | error | correlation |")
    print("|---|---|---|---|---|---|")
    for dtype in ENCODINGS:
        with tempfile.TemporaryDirectory() as folder:
            store = stored(features, dtype, Path(folder))
            size = sum(file.stat().st_size for file in Path(folder).iterdir())
            print(line(dtype, size, true, stored_influence(store.features, directions), share), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run directories whose store is float16")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--subtasks", type=int, default=9)
    parser.add_argument("--top-p", type=float, default=0.05)
    options = parser.parse_args()
    print(f"\nMade up: {options.dim} dimensions")
    made_up = np.concatenate(list(synthetic.features(options.rows, options.dim)))
    table(made_up, synthetic.directions(options.subtasks, options.dim), options.top_p)
    for run in map(RunDir, options.runs):
        print(f"\n{run.path.name}")
        directions, _ = read_directions(run.directions_at(1))
        table(FeatureStore(run.features).features, directions, options.top_p)


if __name__ == "__main__":
    main()
