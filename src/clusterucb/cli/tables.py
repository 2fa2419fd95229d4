"""A run's result and cost as tables on the screen."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from clusterucb.report.benchmarks import show_benchmarks
from clusterucb.run.directory import read_json
from clusterucb.run.session import Session

__all__ = ["show"]


def show(session: Session, summary: dict[str, Any], console: Console | None = None) -> None:
    """Print what was selected, how good the adapter is and what it cost."""
    console = console or Console()
    console.print(_selected(summary))
    if session.dir.evaluation.exists():
        console.print(_evaluated(read_json(session.dir.evaluation)))
    if session.config.evaluation.tasks:
        show_benchmarks(read_json(session.dir.benchmarks / "results.json"), console)
    console.print(_cost(summary))
    console.print(
        f"{_passes(summary)}. Everything is in {session.dir.path}",
        soft_wrap=True,
        highlight=False,
    )


def _passes(summary: dict[str, Any]) -> str:
    """How many pool rows went backward through the model, or forward alone."""
    total, full = summary["total"], summary.get("full")
    if full is None:
        return (
            f"{total['pool_gradients']} pool gradients, {total['pool_forwards']} forward passes of pool rows"
        )
    when = {"dynamic": "in every period", "less": "at every checkpoint"}[full["method"]]
    forwards = ""
    if total["pool_forwards"]:
        forwards = (
            f" and {total['pool_forwards']} forward passes of pool rows, together "
            f"{summary['gradient_equivalents']:.0f} gradients' worth"
        )
    return (
        f"{total['pool_gradients']} pool gradients{forwards}, {full['share_of_cost']:.0%} of the "
        f"{full['pool_gradients']} that scoring all rows {when} takes"
    )


def _selected(summary: dict[str, Any]) -> Table:
    table = Table(title="Selected rows by source", title_justify="left")
    table.add_column("source")
    rounds = summary["selected"]
    for found in rounds:
        table.add_column(f"period {found['round']}" if len(rounds) > 1 else "rows", justify="right")
    total: Counter[str] = Counter()
    for found in rounds:
        total.update(found["sources"])
    for source, _ in total.most_common():
        table.add_row(source, *(str(found["sources"].get(source, 0)) for found in rounds))
    return table


def _evaluated(result: dict[str, Any]) -> Table:
    what = "held-out" if result["on"] == "holdout" else "the target's own (none were held out)"
    table = Table(title=f"Loss on {result['rows']} {what} rows", title_justify="left")
    table.add_column("model")
    table.add_column("loss", justify="right")
    table.add_column("standard error", justify="right")
    for name in ("base", "adapter"):
        error = result[name]["standard_error"]
        table.add_row(name, f"{result[name]['loss']:.4f}", "-" if error is None else f"{error:.4f}")
    return table


def _cost(summary: dict[str, Any]) -> Table:
    table = Table(title="Cost", title_justify="left")
    counts = ["rows", "tokens", "pool_gradients", "target_gradients"]
    counts += ["pool_forwards"] if summary["total"]["pool_forwards"] else []
    for name in ("step", *(count.replace("_", " ") for count in counts), "seconds"):
        table.add_column(name, justify="left" if name == "step" else "right")
    for name, cost in [*summary["steps"].items(), ("total", summary["total"])]:
        table.add_row(name, *(f"{cost[key]:,}" for key in counts), f"{cost['seconds']:.1f}")
    return table
