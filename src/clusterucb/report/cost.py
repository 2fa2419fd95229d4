"""What the run has cost, step by step, and what the method without a budget takes."""

from __future__ import annotations

from clusterucb.report.markup import count, plotted, seconds
from clusterucb.report.run_data import RunData
from clusterucb.report.section import COLOURS, GREY, Figure, Section
from clusterucb.run.costs import FORWARD_SHARE, Cost


def cost(run: RunData, section: Section) -> None:
    """Write the section."""
    if not run.steps:
        section.say("No step is finished yet.")
        return
    total = run.total
    if run.full:
        forwards = ""
        if total.pool_forwards:
            forwards = (
                f" and {count(total.pool_forwards)} forward passes of such rows, each counted as "
                f"{FORWARD_SHARE:.2f} gradients"
            )
        section.say(
            f"{count(total.pool_gradients)} gradients of pool rows{forwards}, "
            f"{run.share_of_full:.0%} of the {count(run.full['pool_gradients'])} that "
            f"{full_name(run)} takes ({count(run.full['pool_tokens'])} tokens)."
        )
    elif run.config.method in ("dynamic", "less"):
        section.say("What the method without a budget takes is told when the run has come to its end.")
    else:
        section.say(
            f"This method needs no gradient: {count(total.pool_forwards)} pool rows went through the model "
            "forward."
        )
    rows = [_row(name, spent) for name, spent in [*run.steps.items(), ("all steps", total)]]
    headings = ["rows", "tokens", "pool gradients", "target gradients", "forward passes", "time"]
    section.table("Cost by step, counted", ["step"], headings, rows)
    if total.seconds > 0:
        section.figure("seconds", _seconds_figure(run))
    if run.benchmarks:
        section.say(f"Benchmarks took {seconds(run.benchmarks.get('seconds', 0.0))} more.")


def full_name(run: RunData) -> str:
    """The method without a budget, as a person says it."""
    when = {"dynamic": "in every period", "less": "at every checkpoint"}
    return f"scoring all rows {when.get(run.config.method, '')}".rstrip()


def _row(name: str, spent: Cost) -> list[str]:
    numbers = (spent.rows, spent.tokens, spent.pool_gradients, spent.target_gradients, spent.pool_forwards)
    return [name, *map(count, numbers), seconds(spent.seconds)]


def _seconds_figure(run: RunData) -> Figure:
    names = [*run.steps][::-1]
    spent = [run.steps[name].seconds for name in names]
    colours = [COLOURS[0] if run.steps[name].pool_gradients else GREY for name in names]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": spent,
        "y": [plotted(name) for name in names],
        "marker": {"color": colours},
        "text": [seconds(value) for value in spent],
        "textposition": "auto",
        "hovertemplate": "%{y}: %{text}<extra></extra>",
    }
    layout = {
        "height": 120 + 26 * len(names),
        "xaxis": {"title": {"text": "seconds"}},
        "yaxis": {"automargin": True},
    }
    caption = "Wall-clock time of each step; in blue those that compute gradients of pool rows."
    return Figure([bars], layout, "Seconds of each step, as bars", caption)
