"""Features by several processes against one: how much faster, and whether the files are the same to the bit.

    clusterucb warmup run.yaml                    # any run directory that is warmed up
    python benchmarks/processes.py RUN            # one process and two, in turn
    python benchmarks/processes.py RUN --processes 8 --repeat 3

Seconds are those that the step counts itself: the target's directions and every row's feature, without
imports and loading of the model. Each process has OMP_NUM_THREADS threads, one unless it is set. Runs
alternate, and the fastest of each counts. RUN is not changed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NEEDED = ("config.yaml", "contamination.json", "initial", "pool", "target", "holdout", "warmup")


def gradients(run: Path, out: Path, processes: int) -> tuple[float, bytes]:
    """Seconds of the step `gradients` in a copy of `run`, and the features."""
    for name in NEEDED:
        if (run / name).is_dir():
            shutil.copytree(run / name, out / name)
        elif (run / name).exists():
            out.mkdir(exist_ok=True)
            shutil.copyfile(run / name, out / name)
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*(several if processes > 1 else []), "-m", "clusterucb", "gradients", "--out", str(out), "-q"]
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    subprocess.run([sys.executable, *command], check=True, env={**os.environ, "OMP_NUM_THREADS": threads})
    seconds = json.loads((out / "features/manifest.json").read_text())["cost"]["seconds"]
    (features,) = (out / "features").glob("features.*")
    return seconds, features.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=2)
    options = parser.parse_args()
    sizes = (1, options.processes)
    fastest = dict.fromkeys(sizes, float("inf"))
    features = set()
    for _ in range(options.repeat):
        for size in sizes:
            with tempfile.TemporaryDirectory(dir=options.run.parent) as folder:
                seconds, found = gradients(options.run, Path(folder) / "run", size)
            fastest[size] = min(fastest[size], seconds)
            features.add(found)
            print(f"{size} processes: {seconds:.1f} s", flush=True)
    one, several = (fastest[size] for size in sizes)
    same = "the same to the bit" if len(features) == 1 else "NOT the same"
    print(f"{options.processes} processes are {one / several:.2f} times as fast as one; features are {same}")


if __name__ == "__main__":
    main()
