"""What a run decides by itself, against random rows and against the settings that were chosen by hand before.

    python benchmarks/defaults.py --out runs/defaults                        # the demo's job, the tutorial's
    python benchmarks/defaults.py --out runs/defaults --study runs/twenty    # and one of the fidelity study's

A run is given nothing but model, pool, target and held-out rows. Beside it stands the same with random rows;
with `--hand` also one with settings by hand. All are ordinary runs in OUT/JOB/{auto,random,hand}; killed at
any moment, the same command goes on. The study's data are those of `fidelity.py data --pool twenty`; its job
is in the study's chat format, so that its losses can be set beside those of docs/fidelity.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fidelity_sources import demo_data

from clusterucb.cli.main import quiet_libraries
from clusterucb.config import load
from clusterucb.errors import ClusterUCBError
from clusterucb.recipes import procedure
from clusterucb.run.session import Session
from clusterucb.runtime.files import read_json
from clusterucb.runtime.screen import Screen

ROOT = Path(__file__).parents[1]
PAPER_LIKE = {"policy": "ucb_beta", "features": "gradients", "budget": 0.2, "rank": 8, "alpha": 32}
HAND = {
    "demo": {
        **PAPER_LIKE,
        **{"warmup_steps": 8, "gradient_length": 256, "target_length": 256, "train_length": 256},
        **{"top_p": 0.05, "periods": 3, "epochs_per_period": 1, "lr": 1e-3, "batch_size": 4},
    },
    "tutorial": {
        **PAPER_LIKE,
        **{
            "warmup_steps": 8,
            "top_p": 0.1,
            "periods": 3,
            "epochs_per_period": 4,
            "lr": 5e-4,
            "batch_size": 8,
        },
    },
    "study": {
        **PAPER_LIKE,
        **{"warmup_steps": 20, "gradient_length": 96, "target_length": 192, "train_length": 192},
        **{"top_p": 0.05, "periods": 4, "epochs_per_period": 1, "lr": 3e-4, "batch_size": 16},
    },
}
"""The settings of the demo and the tutorial of before, and those of the fidelity study."""


def main() -> int:
    """Run what is asked for, and print a table."""
    options = _options()
    quiet_libraries()
    try:
        for job, inputs in jobs(options):
            runs = {
                "auto": {},
                "random": {"method": "random"},
                **({"hand": HAND[job]} if options.hand else {}),
            }
            found = {name: losses(options.out / job / name, inputs, given) for name, given in runs.items()}
            print("\n".join(table(job, found)), flush=True)
    except ClusterUCBError as error:
        print(f"defaults: {error}", file=sys.stderr)
        return 2
    return 0


def jobs(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each job's inputs, by name."""
    data = demo_data()
    shared: dict[str, Any] = {"model": options.model or data.model_path(), "micro_batch": options.micro_batch}
    if "demo" in options.jobs:
        files = data.make(options.out / "demo" / "data")
        yield "demo", {**shared, "pool": files.pool, "target": [files.target], "holdout": [files.heldout]}
    if "tutorial" in options.jobs:
        folder = options.out / "tutorial"
        _make_tutorial_data(folder)
        pool = [folder / f"{name}.jsonl" for name in ("tickets", "orders", "sums", "words")]
        target, heldout = folder / "task.jsonl", folder / "heldout.jsonl"
        yield "tutorial", {**shared, "pool": pool, "target": [target], "holdout": [heldout]}
    if options.study:
        folder, name = options.study / "data", "object_counting.jsonl"
        pool = sorted((folder / "pool").glob("*.jsonl"))
        target, heldout = folder / "targets" / name, folder / "heldout" / name
        yield "study", {**shared, "pool": pool, "target": [target], "holdout": [heldout]}


def losses(out: Path, inputs: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Losses of each held-out row, (n,), under base and adapter of one run, which goes on if it was begun."""
    plain = {
        name: [*map(str, value)] if isinstance(value, list | tuple) else value
        for name, value in inputs.items()
    }
    with Session(load(None, {**plain, **given, "out": str(out)}), Screen()).owned() as session:
        if not session.dir.summary.exists():
            procedure(session)
        found = read_json(session.dir.evaluation)
    return {name: np.array(found[name]["losses"]) for name in ("base", "adapter")}


def table(job: str, found: Mapping[str, Mapping[str, np.ndarray]]) -> Iterator[str]:
    """Markdown: the loss of each run, what it gained on the base, and the gain on random rows, row by row."""
    yield f"| {job} | loss | gain on the base | better than random rows, row by row |"
    yield "|---|---|---|---|"
    for name, losses in found.items():
        gained, against = losses["base"] - losses["adapter"], found["random"]["adapter"] - losses["adapter"]
        shown = "" if name == "random" else _estimate(against)
        yield f"| {name} | {_estimate(losses['adapter'])} | {gained.mean():.4f} | {shown} |"
    yield f"| base | {_estimate(found['auto']['base'])} | | |"


def _estimate(values: np.ndarray) -> str:
    return f"{values.mean():.4f} ± {values.std(ddof=1) / np.sqrt(len(values)):.4f}"


def _make_tutorial_data(folder: Path) -> None:
    """Run the tutorial's own script in the folder, if its files are not there."""
    if (folder / "heldout.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    (script,) = re.findall(r'```python title="make_data.py"\n(.*?)```', page, flags=re.DOTALL)
    exec(compile(script.replace("Path(name)", f"Path({str(folder)!r}, name)"), "make_data.py", "exec"), {})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the runs")
    add("--jobs", nargs="*", default=["demo", "tutorial"], metavar="JOB", help="demo, tutorial, or none")
    add("--study", type=Path, metavar="DIR", help="folder that `fidelity.py data --pool twenty` has filled")
    add("--hand", action="store_true", help="also the settings by hand")
    add("--model", help="instead of the demo's")
    add("--micro-batch", type=int, default=2, help="rows at once in training; changes the time alone")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
