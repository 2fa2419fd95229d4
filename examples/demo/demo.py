"""`make demo`: the whole procedure on a real model and real data, against a random subset of the same size.

SmolLM2-135M-Instruct, 240 rows of six unlike sources, HumanEval problems as the target; other HumanEval
problems are held out and decide. All settings are the program's own. Everything printed was measured in this
run, or in the earlier one that it goes on from: what `demo-run` holds already is not computed again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from clusterucb import Config, Session, dynamic
from clusterucb.cli.main import quiet_libraries
from clusterucb.cli.tables import show
from clusterucb.errors import ClusterUCBError
from clusterucb.report.quality import paired
from clusterucb.report.section import with_error
from clusterucb.runtime.files import read_json, write_json
from clusterucb.runtime.screen import Screen
from clusterucb.selection.share import share
from clusterucb.steps.evaluate import evaluate_adapters
from clusterucb.steps.train import train_on
from data import make, model_path

SEED = 0


def main(out: Path) -> None:
    """Make the data, run ClusterUCB, train on a random subset, and print the comparison."""
    quiet_libraries()
    files = make(out / "data", seed=SEED)
    config = Config(
        model=model_path(),
        pool=[str(path) for path in files.pool],
        target=[str(files.target)],
        holdout=[str(files.heldout)],
        out=str(out / "clusterucb"),
        seed=SEED,
    )
    session = Session(config, Screen())
    with session.owned():
        summary = dynamic(session)
        show(session, summary)
        compare(session, Console())
    print(f"All of it as one page: {session.dir.report}")


def compare(session: Session, console: Console) -> None:
    """Train on a random subset of the same size and steps, and evaluate all on the held-out rows."""
    usable = len(session.inputs.pooled.rows)
    rng = np.random.default_rng(SEED)
    rows = np.sort(rng.choice(usable, share(session.config.selection.top_p, usable), replace=False))
    baseline = session.dir.path / "random"
    train_on(session, rows, baseline)
    path = session.dir.path / "comparison.json"
    if not path.exists():
        evaluated = evaluate_adapters(session, {"random": baseline})
        write_json(path, {**evaluated, **read_json(session.dir.evaluation)})
    losses = read_json(path)
    console.print(_comparison(losses))
    _say_who_won(losses, console)


def _comparison(losses: dict[str, Any]) -> Table:
    names = {
        "base": "the base model",
        "adapter": "trained on ClusterUCB's rows",
        "random": "trained on as many random rows",
    }
    table = Table(title=f"Loss on {losses['rows']} HumanEval problems held out of selection and training")
    for column in ("model", "loss", "standard error", "against base"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for key, name in names.items():
        found, change = losses[key], paired(losses[key], losses["base"])
        against = "-" if key == "base" else with_error(*change, "+.4f")
        table.add_row(name, f"{found['loss']:.4f}", f"{found['standard_error']:.4f}", against)
    return table


def _say_who_won(losses: dict[str, Any], console: Console) -> None:
    change, error = paired(losses["adapter"], losses["random"])
    ahead = "ClusterUCB's rows" if change < 0 else "the random rows"
    verdict = "won" if error and abs(change) > 2 * error else "are ahead, by no more than chance does"
    told = with_error(change, error, "+.4f")
    console.print(f"{ahead} {verdict}: {told} between the two, row by row.", highlight=False)


if __name__ == "__main__":
    try:
        main(Path("demo-run"))
    except ClusterUCBError as error:
        print(f"demo: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("demo: interrupted; `make demo` goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
