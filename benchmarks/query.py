"""A query: 100 targets over a store on disk in one pass, against reading the store.

    python benchmarks/query.py            # 1,000,000 x 8192 in float16: 16.4 GB in a temporary folder
    python benchmarks/query.py --rows 100000 --folder /scratch

The system is asked to forget the store before each pass, and passes alternate. CPU seconds say what a pass
would take where nobody else is at work.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from clusterucb.features.encoding import ENCODINGS
from clusterucb.features.ranking import BLOCK, scores_of_all
from clusterucb.features.store import StoredFeatures


def write_store(file: Path, rows: int, dim: int) -> StoredFeatures:
    """Rows of norm 1: one block of random ones, over and over."""
    block = np.random.default_rng(0).standard_normal((4096, dim), np.float32)
    block /= np.linalg.norm(block, axis=1, keepdims=True)
    data = block.astype(np.float16)
    with file.open("wb") as out:
        for start in range(0, rows, len(data)):
            out.write(data[: rows - start].data)
        os.fsync(out.fileno())
    return StoredFeatures(file, rows, dim, ENCODINGS["float16"], once=True)


def seconds(file: Path, work: Callable[[], object]) -> tuple[float, float]:
    """Of work on a file that is not in the system's cache: by the clock, and of the processor."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - busy


def read(features: StoredFeatures) -> None:
    for start in range(0, len(features), BLOCK):
        features[start : start + BLOCK]


def main() -> None:
    """Print seconds of both passes, each time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--targets", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    room = shutil.disk_usage(options.folder or tempfile.gettempdir()).free
    rows = min(options.rows, int(0.8 * room) // (2 * options.dim))
    if rows < options.rows:
        print(f"the disk has room for {rows:,} rows, not {options.rows:,}")
    directions = np.random.default_rng(1).standard_normal((options.targets, options.dim))
    owners = np.arange(options.targets)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file = Path(folder) / "features.f16"
        features = write_store(file, rows, options.dim)
        size = file.stat().st_size / 1e9
        print(f"{rows:,} x {options.dim}, {size:.1f} GB, {torch.get_num_threads()} threads")
        for _ in range(options.repeat):
            reading, copying = seconds(file, lambda: read(features))
            ranking, busy = seconds(file, lambda: scores_of_all(features, directions, owners))
            print(f"read {reading:.1f} s ({size / reading:.2f} GB/s), CPU {copying:.1f} s")
            print(
                f"{options.targets} targets {ranking:.1f} s ({ranking / reading:.2f} times), CPU {busy:.1f} s"
            )


if __name__ == "__main__":
    main()
