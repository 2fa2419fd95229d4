"""Peak memory of each step, for two sizes of pool: what grows with the rows, and what does not.

    python benchmarks/memory.py                      # 1,000 and 100,000 rows; some ten minutes, 2 GB of disk
    python benchmarks/memory.py --rows 1000 20000

The whole procedure's steps are run by their commands, each as a process of its own, on random sentences and a
Llama of a few thousand parameters (the tests'), with features of 8192 dimensions: the model takes no room to
speak of, so that what is seen is what the pool takes. `select again` is the bandit's re-selection at a
checkpoint, with fresh gradients. A step's peak is its process's largest resident set.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from builders import build_model, build_tokenizer, write_rows

SETTINGS = {
    "rank": 2,
    "alpha": 4,
    "warmup-steps": 2,
    "batch-size": 8,
    "micro-batch": 8,
    "k": 100,
    "iterations": 3,
    "draw-batch": 64,
    "batch-tokens": 1024,  # so few that the short rows of a small pool fill a micro-batch, too
    "save-steps": 1000,
}
STEPS = {
    "gradients": ("gradients",),
    "cluster": ("cluster",),
    "select": ("select",),
    "select again": ("select", "--checkpoint", "{out}/warmup"),
}


def main() -> None:
    """Run all steps for each size and print their peaks as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=(1_000, 100_000))
    sizes = parser.parse_args().rows
    peaks = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch, "model")
        build_model().save_pretrained(model)
        build_tokenizer().save_pretrained(model)
        for rows in sizes:
            peaks[rows] = _peaks(Path(scratch, str(rows)), model, rows)
    print(f"| peak, MiB | {' | '.join(f'{rows:,} rows' for rows in sizes)} | last against first |")
    print("|---" * (len(sizes) + 2) + "|")
    for step in STEPS:
        found = [peaks[rows][step] for rows in sizes]
        print(f"| {step} | {' | '.join(f'{peak:.0f}' for peak in found)} | {found[-1] / found[0]:.2f} |")


def _peaks(folder: Path, model: Path, rows: int) -> dict[str, float]:
    folder.mkdir()
    pool = write_rows(folder / "pool.jsonl", rows, seed=0)
    target = write_rows(folder / "target.jsonl", 8, seed=1)
    out = folder / "run"
    options = [part for name, value in SETTINGS.items() for part in (f"--{name}", str(value))]
    options += ["--model", str(model), "--pool", str(pool), "--target", str(target), "--out", str(out)]
    _peak("warmup", *options)
    found = {}
    for step, command in STEPS.items():
        found[step] = _peak(*(part.format(out=out) for part in command), *options)
        print(f"{rows:,} rows, {step}: {found[step]:.0f} MiB", file=sys.stderr, flush=True)
    return found


def _peak(*arguments: str) -> float:
    """MiB that a command had resident at most."""
    command = [sys.executable, "-m", "clusterucb", *arguments, "--quiet", "--device", "cpu"]
    pid = os.posix_spawn(sys.executable, command, os.environ)
    _, status, used = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)}: ended with status {os.waitstatus_to_exitcode(status)}")
    return used.ru_maxrss / 1024


if __name__ == "__main__":
    main()
