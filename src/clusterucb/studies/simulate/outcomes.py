"""Outcomes as tables and as a page: simulation.csv has a line an outcome, draws.csv one an arm; spreads.

The page asks nothing of the network: measures against budget, a plot a setting. Names are text wherever they
stand, and the browser is told to load nothing (the page's content policy).
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clusterucb.report.page import environment
from clusterucb.runtime.files import publish
from clusterucb.studies.simulate.simulate import MEASURES, STALE, UNIFORM, Outcome

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


def write_plot(path: Path, spreads: pd.DataFrame, top_p: float) -> None:
    """Publish the plots of `spreads`, for a selection of the top `top_p`."""
    panels = enumerate(spreads.groupby(SETTING, sort=False))
    page = environment().get_template("simulation.html")
    text = page.render(
        title=f"What a bandit finds: the top {top_p:g} of the pool",
        plots=[_plot(panel, label(*setting), number) for number, (setting, panel) in panels],
        uniform=UNIFORM,
        stale=STALE,
        measures={name: MEASURES[name] for name in spreads["measure"].unique()},
    )
    with publish(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def _plot(panel: pd.DataFrame, title: str, number: int) -> str:
    """One setting; the first plot of a page brings the library along."""
    import plotly.express as px

    level = panel[panel["policy"] == STALE].assign(budget=panel["budget"].max())
    lines = pd.concat([panel, level])  # what takes no budget is a line over all
    figure: Any = px.line(
        lines.assign(policy=lines["policy"].map(html.escape)),
        x="budget",
        y="mean",
        error_y="std",
        color="policy",
        color_discrete_sequence=px.colors.qualitative.Safe,  # told apart by colour-blind eyes
        color_discrete_map={STALE: "gray", UNIFORM: "gray"},
        line_dash="policy",
        line_dash_sequence=["solid"],
        line_dash_map={STALE: "dot", UNIFORM: "dash"},
        facet_col="measure",
        facet_col_spacing=0.05,
        markers=True,
        title=html.escape(title),
        template="plotly_white",
    )
    figure.update_xaxes(tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(matches=None, showticklabels=True)
    figure.for_each_annotation(lambda note: note.update(text=note.text.removeprefix("measure=")))
    plot: str = figure.to_html(full_html=False, include_plotlyjs=number == 0, div_id=f"plot-{number}")
    return plot
