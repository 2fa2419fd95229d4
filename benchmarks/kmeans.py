"""Spherical k-means: seconds against faiss, the KeOps backend, and peak memory over a store on disk.

    python benchmarks/kmeans.py                  # 20,000 x 8192, k 100; faiss where it is installed
    python benchmarks/kmeans.py --memory         # 300,000 x 8192 from disk: 4.9 GB in a temporary folder
    python benchmarks/kmeans.py --keops --rows 2000 --repeat 1

Both programs get the same rows, start from the same k rows and use the same number of threads. faiss gets
float32 made beforehand; ours converts the store's float16 as it goes, and ends with one assignment more, as
its labels are those of its final centroids. Runs alternate and the fastest of each counts. Where a machine is
shared, CPU seconds say more than wall seconds; they need OMP_WAIT_POLICY=PASSIVE, or waiting counts as work.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import synthetic
import torch
from numpy.typing import NDArray

from clusterucb.features.influence import stored_influence
from clusterucb.features.kmeans import spherical_kmeans
from clusterucb.features.store import FeatureStore, FeatureWriter


class Taken(NamedTuple):
    """What a run took, and the mean cosine it reached."""

    wall: float
    cpu: float
    objective: float


def take(run: Callable[[], float]) -> Taken:
    wall, cpu = time.perf_counter(), time.process_time()
    objective = run()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu, objective)


def ours(x: NDArray[np.float16], options: argparse.Namespace, backend: str) -> float:
    return spherical_kmeans(x, options.k, iterations=options.iterations, backend=backend).objective


def with_faiss(x: NDArray[np.float32], options: argparse.Namespace) -> float:
    """The objective is that of faiss's last assignment, before its last update, as faiss reports it."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    start = np.sort(np.random.default_rng(0).choice(len(x), options.k, replace=False))
    kmeans = faiss.Kmeans(
        x.shape[1],
        options.k,
        niter=options.iterations,
        spherical=True,
        max_points_per_centroid=len(x),
        min_points_per_centroid=1,
    )
    kmeans.train(x, init_centroids=x[start])
    return float(kmeans.obj[-1]) / len(x)


def compare(options: argparse.Namespace) -> None:
    x = np.concatenate(list(synthetic.features(options.rows, options.dim)))
    runs: dict[str, Callable[[], float]] = {"clusterucb": lambda: ours(x, options, "torch")}
    if options.keops:
        runs["clusterucb, keops"] = lambda: ours(x, options, "keops")
    try:
        import faiss

        wide = x.astype(np.float32)
        runs[f"faiss {faiss.__version__}"] = lambda: with_faiss(wide, options)
    except ImportError:
        print("faiss is not installed: pip install faiss-cpu, to compare with it\n")
    taken = {name: [] for name in runs}
    for _ in range(options.repeat):
        for name, run in runs.items():
            taken[name].append(take(run))
    print(
        f"{options.rows:,} x {options.dim}, k {options.k}, {options.iterations} iterations, fastest of "
        f"{options.repeat}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n"
    )
    print("| | wall s | CPU s | mean cosine |\n|---|---|---|---|")
    for name, all_of_it in taken.items():
        wall, cpu = min(t.wall for t in all_of_it), min(t.cpu for t in all_of_it)
        print(f"| {name} | {wall:.1f} | {cpu:.1f} | {all_of_it[0].objective:.4f} |")


def write_store(folder: Path, options: argparse.Namespace) -> None:
    with FeatureWriter(folder, options.rows, options.dim, {}, options.store_dtype) as writer:
        first = 0
        for block in synthetic.features(options.rows, options.dim):
            writer.write(np.arange(first, first + len(block)), block, np.zeros(len(block)))
            first += len(block)
        writer.finish({})


def resident(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most (a child's getrusage begins with its parent's peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def cluster_and_score(folder: Path, options: argparse.Namespace) -> tuple[float, float, float]:
    """Resident MiB of this process: before, and its peak until after k-means and until after scoring."""
    torch.zeros(512, 512) @ torch.zeros(512, 512)  # threads and libraries belong to the baseline
    store, before = FeatureStore(folder), resident("VmRSS")
    spherical_kmeans(store.features, options.k, iterations=options.iterations)
    clustered = resident("VmHWM")
    stored_influence(store.features, synthetic.directions(9, options.dim))
    return before, clustered, resident("VmHWM")


def measure_memory(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_store(folder, options)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            before, clustered, scored = pool.apply(cluster_and_score, (folder, options))
    print(f"{options.rows:,} x {options.dim} {options.store_dtype}, k {options.k}: store {size:,.0f} MiB")
    print(f"resident before: {before:,.0f} MiB; at most until after")
    print(f"    k-means, {options.iterations} iterations: {clustered:,.0f} MiB, +{clustered - before:,.0f}")
    print(f"    scores of all rows: {scored:,.0f} MiB, +{scored - before:,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, help="20,000, or 300,000 with --memory")
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--k", type=int, help="100, or the root of the rows with --memory")
    parser.add_argument("--iterations", type=int, help="20, or 2 with --memory, as more need no more")
    parser.add_argument("--repeat", type=int, default=3, help="the fastest of so many runs")
    parser.add_argument("--keops", action="store_true", help="the KeOps backend too")
    parser.add_argument("--memory", action="store_true", help="peak memory over a store on disk (Linux)")
    parser.add_argument("--store-dtype", default="float16", help="of the store on disk: float16, int8, 1bit")
    parser.add_argument("--folder", help="where the store goes and is deleted from; by default the system's")
    options = parser.parse_args()
    options.rows = options.rows or (300_000 if options.memory else 20_000)
    options.k = options.k or (round(options.rows**0.5) if options.memory else 100)
    options.iterations = options.iterations or (2 if options.memory else 20)
    (measure_memory if options.memory else compare)(options)


if __name__ == "__main__":
    main()
