"""The command, and cells of a comparison written by hand: what a run leaves of its result and its cost."""

import csv
import json
import random

from cli_helpers import clusterucb, options
from clusterucb.config import Config
from clusterucb.run.costs import Cost, Work, bill
from clusterucb.run.presets import preset_named
from clusterucb.studies.compare.cells import Cell

CONFIG = Config(
    model="m",
    out="o",
    pool=["p"],
    target=["t"],
    less={"less_checkpoints": 3},
    selection={"budget": 0.2},
    training={"periods": 2, "batch_size": 8},
)


def cell(out, name, repeat=0):
    return Cell(out, preset_named(name), repeat)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def finish(run, seed, *, rows=4, usable=100, gradients=40, seconds=2.5, warmup=None):
    """A run that has ended, with losses and costs by `seed`; returns its losses under base and adapter."""
    numbers = random.Random(seed)
    base = [2 + 0.1 * n for n in range(rows)]
    adapter = [loss - numbers.random() for loss in base]
    found = {
        name: {"loss": sum(losses) / rows, "standard_error": 0.1, "losses": losses}
        for name, losses in (("base", base), ("adapter", adapter))
    }
    steps = {
        "warmup": warmup or Cost(rows=3, tokens=30, seconds=1.0),
        "select 1": Cost(rows=usable, tokens=10 * gradients, pool_gradients=gradients, seconds=seconds),
        "evaluate": Cost(rows=2 * rows, tokens=80, seconds=0.25),
    }
    costs = {name: cost.to_json() for name, cost in steps.items()}
    if not run.config.exists():
        name, repeat = run.path.parts[-2:]
        write(run.config, preset_named(name).config(CONFIG, int(repeat), run.path).to_yaml())
    if not (told := run.checkpoint(1) / "checkpoint.json").exists():
        write(told, {"cost": costs["warmup"]})
    write(run.round(1) / "summary.json", {"cost": costs["select 1"]})
    write(run.evaluation, {"on": "holdout", "rows": rows, **found, "cost": costs["evaluate"]})
    job = Work(rows=usable, tokens=1000, training_tokens=1000, target_tokens=0, times=2)
    summary = {"rows": usable, "steps": costs, "total": sum(steps.values(), Cost()).to_json()}
    write(run.summary, {**summary, "bill": bill(steps, job), "remarks": ["it rains", f"seed {seed}"]})
    return base, adapter


def compare(settings, methods, seeds, **changes):
    """What the command says; the features are the methods' own."""
    return clusterucb(
        "compare", "--methods", methods, "--seeds", seeds, *options(settings, **{"features": None, **changes})
    )


def csv_lines(out):
    with (out / "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def timeless(out):
    """comparison.csv without the time that it took."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in csv_lines(out)]
