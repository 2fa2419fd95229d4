"""What the run has cost, step by step, and what the method without a budget takes."""

from __future__ import annotations

from clusterucb.report.run_data import RunData
from clusterucb.report.section import COLOURS, GREY, Figure, Section, axis, plotted, seconds


def cost(run: RunData) -> Section:
    """The section."""
    return Section(figures={"seconds": _seconds(run)} if run.total.seconds > 0 else {})


def _seconds(run: RunData) -> Figure:
    steps = [*run.steps.items()][::-1]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [spent.seconds for _, spent in steps],
        "y": [plotted(name) for name, _ in steps],
        "marker": {"color": [COLOURS[0] if spent.pool_gradients else GREY for _, spent in steps]},
        "text": [seconds(spent.seconds) for _, spent in steps],
        "textposition": "auto",
        "hovertemplate": "%{y}: %{text}<extra></extra>",
    }
    layout = {"height": 120 + 26 * len(steps), "xaxis": axis("seconds"), "yaxis": {"automargin": True}}
    return Figure("Seconds of each step, as bars", [bars], layout=layout)
