"""A simulation as a page that asks nothing of the network: measures against budget, a plot a setting.

Names are text wherever they stand: what comes from a file cannot become markup. The browser is told to load
nothing (the page's content policy).
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.express as px

from clusterucb.report.page import environment
from clusterucb.runtime.files import publish
from clusterucb.studies.simulate.outcomes import SETTING, label
from clusterucb.studies.simulate.simulate import STALE, UNIFORM
from clusterucb.studies.simulate.truth import MEASURES


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
