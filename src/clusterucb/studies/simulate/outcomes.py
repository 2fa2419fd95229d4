"""Outcomes as tables: simulation.csv with a line an outcome, draws.csv with one an arm, and spreads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from clusterucb.runtime.files import publish
from clusterucb.studies.simulate.simulate import STALE, UNIFORM, Outcome
from clusterucb.studies.simulate.truth import MEASURES

SETTING = ["problem", "k", "csp"]
RUN = ["problem", "policy", "budget", "k", "csp", "seed"]


def label(problem: str, k: int, csp: float) -> str:
    """A setting as a person reads it."""
    return f"{problem}, {k} clusters, csp {csp:g}"


def spreads(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Mean and sample deviation over seeds, a line for each setting, measure, policy and budget, in order.

    Columns: those of `SETTING`, `measure`, `policy`, `budget`, `mean`, `std` (NaN for a single seed) and
    `count`, of seeds. References stand last in every setting of their problem. A measure that says nothing
    of a problem is left out there.
    """
    long = _table(outcomes).melt(RUN, list(MEASURES), var_name="measure").dropna(subset="value")
    is_reference = long["policy"].isin((STALE, UNIFORM))
    own, references = long[~is_reference], long[is_reference].drop(columns=["k", "csp"])
    everywhere = own[SETTING].drop_duplicates().merge(references, on="problem")
    groups = pd.concat([own, everywhere]).groupby([*SETTING, "measure", "policy", "budget"], sort=False)
    return groups["value"].agg(["mean", "std", "count"]).reset_index()


def write_tables(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Publish simulation.csv, what every run found, and draws.csv, how often it drew each arm.

    Beside an arm's draws stand its size and the mean influence of all its rows. Floats read back exactly; a
    measure that says nothing is empty.
    """
    runs = _table(outcomes)
    arms = runs.loc[runs.index.repeat([len(outcome.draws) for outcome in outcomes]), RUN]
    arms = arms.assign(
        arm=arms.groupby(level=0).cumcount(),
        size=np.concatenate([outcome.arms.sizes for outcome in outcomes]),
        draws=np.concatenate([outcome.draws for outcome in outcomes]),
        mean_influence=np.concatenate([outcome.arms.influence for outcome in outcomes]),
    )
    for name, table in (("simulation.csv", runs), ("draws.csv", arms)):
        with publish(folder / name) as part:
            table.to_csv(part, index=False, lineterminator="\n")


def _table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    return pd.DataFrame([vars(outcome) for outcome in outcomes], columns=[*RUN, "spent", *MEASURES])
