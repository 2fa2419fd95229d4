"""A simulation as tables on the screen: one a problem, k and csp."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clusterucb.studies.simulate.outcomes import Panel, Spread
from clusterucb.studies.simulate.truth import MEASURES

__all__ = ["show_simulation"]


def show_simulation(panels: Sequence[Panel], top_p: float, console: Console | None = None) -> None:
    """Print every measure by policy and budget, in percent: the mean over seeds and their deviation."""
    console = console or Console(highlight=False)
    for panel in panels:
        setting = panel.setting
        console.print(
            f"{setting.problem}, {setting.k} clusters, csp {setting.csp:g}, by budget",
            markup=False,
            soft_wrap=True,
        )
        for measure, policies in panel.spreads.items():
            console.print(_table(measure, policies))
    for measure in dict.fromkeys(measure for panel in panels for measure in panel.spreads):
        console.print(f"{measure}: {MEASURES[measure]}", soft_wrap=True)
    seeds = panels[0].seeds
    spread = f"mean ± standard deviation over {seeds} seeds of the draws" if seeds > 1 else "one seed"
    console.print(
        f"top {top_p:g} of the pool; {spread}; uniform: rows drawn without clusters, whose expected recall is"
        " the budget; stale: the top rows of the store that the clusters are from, without a new gradient",
        soft_wrap=True,
    )


def _table(measure: str, policies: dict[str, dict[float, Spread]]) -> Table:
    table = Table()
    table.add_column(f"{measure} in %", overflow="fold")
    budgets = sorted({budget for found in policies.values() for budget in found})
    for budget in budgets:
        table.add_column(f"{budget:g}" if budget else "no draw", justify="right")
    for policy, found in policies.items():
        cells = (_cell(found[budget]) if budget in found else "" for budget in budgets)
        table.add_row(escape(policy), *cells)
    return table


def _cell(spread: Spread) -> str:
    deviation = "" if math.isnan(spread.deviation) else f"±{spread.deviation:.1%}".removesuffix("%")
    return f"{spread.mean:.1%}".removesuffix("%") + deviation
