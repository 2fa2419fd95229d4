"""A simulation as a plot in one HTML file that asks nothing of the network: measures against budget.

A line a policy with a band over seeds; a menu chooses problem, k and csp. Names are text wherever they
stand: what comes from a file cannot become markup. The browser is told to load nothing (its content policy).
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plotly import graph_objects
from plotly.subplots import make_subplots

from clusterucb.report.section import COLOURS, GREY
from clusterucb.runtime.files import publish
from clusterucb.studies.simulate.outcomes import Panel, Spread
from clusterucb.studies.simulate.simulate import STALE, UNIFORM
from clusterucb.studies.simulate.truth import MEASURES

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font-family: sans-serif }}
body {{ margin: 1rem }}
dt {{ font-weight: bold; float: left; margin-right: .5em }}
dd {{ margin: 0 }}
</style>
</head>
<body>
<h1>{title}</h1>
{plot}
<p>{caption}</p>
<dl>{measures}</dl>
</body>
</html>
"""

_LIGHT_OR_DARK = """
const dark = window.matchMedia("(prefers-color-scheme: dark)");
function paint() {
  const ink = dark.matches ? "#dddddd" : "#222222", grid = dark.matches ? "#444444" : "#dddddd";
  const look = {"font.color": ink};
  for (const axis of AXES) {
    look[axis + ".gridcolor"] = grid;
    look[axis + ".zerolinecolor"] = grid;
    look[axis + ".linecolor"] = grid;
  }
  Plotly.relayout("simulation", look);
}
dark.addEventListener("change", paint);
paint();
"""


def write_plot(path: Path, panels: Sequence[Panel], top_p: float) -> None:
    """Publish the plot of `panels`, at least one, for a selection of the top `top_p`."""
    measures = [name for name in MEASURES if any(name in panel.spreads for panel in panels)]
    figure = make_subplots(rows=1, cols=len(measures), subplot_titles=measures, horizontal_spacing=0.06)
    shown: list[int] = []  # the panel of each trace
    for number, panel in enumerate(panels):
        for trace, column in _traces(panel, measures):
            figure.add_trace(trace.update(visible=number == 0), row=1, col=column)
            shown.append(number)
    figure.update_xaxes(title="budget", tickformat=".0%", rangemode="tozero")
    figure.update_layout(
        height=520,
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"t": 110, "l": 50, "r": 20},
        legend={"orientation": "h", "y": -0.2},
        updatemenus=[_menu(panels, shown)] if len(panels) > 1 else [],
    )
    axes = [f"{letter}axis{i or ''}" for i in (0, *range(2, len(measures) + 1)) for letter in "xy"]
    plot = figure.to_html(
        full_html=False,
        div_id="simulation",
        include_plotlyjs=True,
        config={"displaylogo": False},
        post_script=_LIGHT_OR_DARK.replace("AXES", str(axes)),
    )
    page = _PAGE.format(
        title=html.escape(f"What a bandit finds: the top {top_p:g} of the pool"),
        plot=plot,
        caption=html.escape(_caption(panels)),
        measures="".join(f"<dt>{name}</dt><dd>{html.escape(MEASURES[name])}</dd>" for name in measures),
    )
    with publish(path) as part:
        part.write_text(page, encoding="utf-8")


def _traces(panel: Panel, measures: list[str]) -> Iterator[tuple[Any, int]]:
    """Every line and band of a panel, with its column from 1."""
    for column, measure in enumerate(measures, 1):
        for i, (policy, found) in enumerate(panel.spreads.get(measure, {}).items()):
            reference = policy in (STALE, UNIFORM)
            look = {
                "legendgroup": html.escape(policy),
                "name": html.escape(policy),
                "line": {"color": GREY, "dash": "dash" if policy == UNIFORM else "dot"}
                if reference
                else {"color": COLOURS[i % len(COLOURS)]},
            }
            if policy == STALE:
                found = _level(found[0.0], panel)
            elif panel.seeds > 1:
                yield _band(found, look), column
            yield (
                graph_objects.Scatter(
                    x=list(found),
                    y=[spread.mean for spread in found.values()],
                    mode="lines" if reference else "lines+markers",
                    showlegend=column == 1,
                    **look,
                ),
                column,
            )


def _level(spread: Spread, panel: Panel) -> dict[float, Spread]:
    """A reference that needs no draw, as a line over all budgets."""
    budgets = [b for policies in panel.spreads.values() for found in policies.values() for b in found]
    return {0.0: spread, max(budgets): spread}


def _band(found: dict[float, Spread], look: dict[str, Any]) -> Any:
    """One standard deviation to either side of the mean."""
    budgets, spreads = list(found), list(found.values())
    upper = [spread.mean + spread.deviation for spread in spreads]
    lower = [spread.mean - spread.deviation for spread in spreads]
    return graph_objects.Scatter(
        x=[*budgets, *budgets[::-1]],
        y=[*upper, *lower[::-1]],
        mode="lines",
        fill="toself",
        fillcolor=_faint(look["line"]["color"]),
        showlegend=False,
        hoverinfo="skip",
        legendgroup=look["legendgroup"],
        line={"width": 0},
    )


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"


def _menu(panels: Sequence[Panel], shown: list[int]) -> dict[str, Any]:
    buttons = [
        {
            "label": html.escape(_label(panel)),
            "method": "restyle",
            "args": [{"visible": [number == at for at in shown]}],
        }
        for number, panel in enumerate(panels)
    ]
    place = {"x": 0, "xanchor": "left", "y": 1.25, "yanchor": "top"}
    return {"buttons": buttons, **place, "bgcolor": "#f2f2f2", "font": {"color": "#222222"}}


def _label(panel: Panel) -> str:
    setting = panel.setting
    return f"{setting.problem}, {setting.k} clusters, csp {setting.csp:g}"


def _caption(panels: Sequence[Panel]) -> str:
    only = f"{_label(panels[0])}. " if len(panels) == 1 else ""
    seeds = panels[0].seeds
    bands = f"Lines are means over {seeds} seeds of the draws, bands one standard deviation. "
    references = (
        "uniform: rows drawn without clusters. stale: what older features alone find, without a new gradient."
    )
    return only + (bands if seeds > 1 else "One seed. ") + references
