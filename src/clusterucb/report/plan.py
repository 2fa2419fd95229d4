"""A plan as tables on the screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from clusterucb.run.costs import FORWARD_SHARE

__all__ = ["show_plan"]

_COUNTS = ("rows", "tokens", "pool_gradients", "target_gradients", "pool_forwards")
_OF_METHODS = (*_COUNTS, "gradient_equivalents")
_WIDEST = 160


def show_plan(plan: dict[str, Any], console: Console | None = None) -> None:
    """Print what `plan` returned."""
    console = console or Console()
    for table in (_steps(plan), _methods(plan), _memory(plan)):
        if not console.is_terminal:  # a file has no width
            table.width = console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
        console.print(table, crop=False)
    for line in _remarks(plan):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _steps(plan: dict[str, Any]) -> Table:
    named = plan["method"] if plan["bandit"] == "none" else f"{plan['method']} with {plan['bandit']}"
    excluded = f", {plan['excluded']:,} more cannot be used" if plan["excluded"] else ""
    table = _table(f"Plan: {named}, {plan['rows']:,} usable rows{excluded}", "step")
    for name, step in plan["steps"].items():
        table.add_row(name, *_cells(step, "~" if step["expected"] else ""))
    table.add_row("total", *_cells(plan["total"]), style="bold")
    return table


def _methods(plan: dict[str, Any]) -> Table:
    table = _table("The same settings by method", "method", _OF_METHODS)
    for name, total in plan["methods"].items():
        table.add_row(name, *_cells(total, names=_OF_METHODS))
    return table


def _table(title: str, first: str, names: Sequence[str] = _COUNTS) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for heading in (*(name.replace("_", " ") for name in names), "time", "disk"):
        table.add_column(heading, justify="right")
    return table


def _cells(cost: dict[str, Any], mark: str = "", names: Sequence[str] = _COUNTS) -> Iterator[str]:
    for name in names:
        yield f"{mark if name == 'tokens' else ''}{cost[name]:,.0f}"
    yield "?" if cost["seconds"] is None else _time(cost["seconds"])
    yield _size(cost["disk"])


def _memory(plan: dict[str, Any]) -> Table:
    table = Table(title="Memory of the device", title_justify="left")
    table.add_column("stage")
    table.add_column("part")
    table.add_column("size", justify="right")
    peak = plan["memory"]["peak"]
    for stage, parts in plan["memory"].items():
        if stage != "peak":
            for part, size in parts.items():
                table.add_row(stage, part, _size(size))
    table.add_row("peak", f"always, and {peak['stage']}", _size(peak["bytes"]), style="bold")
    return table


def _remarks(plan: dict[str, Any]) -> Iterator[str]:
    total, speed = plan["total"], plan["speed"]
    if full := plan.get("full"):
        when = {"dynamic": "in every period", "less": "at every checkpoint"}[full["method"]]
        forwards = f" and {total['pool_forwards']:,} forward passes" if total["pool_forwards"] else ""
        yield (
            f"{total['pool_gradients']:,} pool gradients{forwards} are {full['share_of_cost']:.0%} of the "
            f"{full['pool_gradients']:,} that scoring all rows {when} takes; "
            f"time {_time(total['seconds'])} against {_time(full['seconds'])}."
        )
    if plan["exact"]:
        yield "Counts are exact; tokens marked ~ are those of as many rows drawn at random, on average."
    else:
        yield "The pool was sampled: the number of usable rows, and all tokens, are estimates."
    if speed["measured"]:
        yield (
            f"Times are by the speed measured just now: {speed['gradients']:,.0f} tokens/s of gradients, "
            f"{speed['training']:,.0f} of training, {speed['forward']:,.0f} of forward passes."
        )
    else:
        yield (
            f"Times are by the {speed['gradients']:,.0f} tokens/s given, with forward passes alone three "
            "times as fast; k-means is left out."
        )
    if any(total["pool_forwards"] for total in plan["methods"].values()):
        yield f"Gradient equivalents count a forward pass of a pool row as {FORWARD_SHARE:.2f} gradients."
    if not plan["activations_measured"]:
        yield "Activations are not in the memory, as nothing was measured."
    yield (
        "Loading, reading the inputs and benchmarks are left out of the time; libraries and reserves out of "
        f"the memory. While it trains, a run takes {_size(plan['disk']['while training'])} more of the disk."
    )


def _time(seconds: float) -> str:
    """As 12.3 s, 4 min 20 s or 3 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def _size(size: int) -> str:
    """In the largest unit of 1000 that leaves a number from 1 on."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:,.0f} B" if unit == "B" else f"{size:,.1f} {unit}"
        size = size / 1000  # type: ignore[assignment]
    return f"{size:,.1f} TB"
