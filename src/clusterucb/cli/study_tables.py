"""A comparison as one table on the screen: a line a method, and what its figures mean.

A plan as tables on the screen.

A simulation as tables on the screen: one a problem, k and csp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clusterucb.run.costs import FORWARD_SHARE
from clusterucb.studies.simulate.outcomes import Panel, Spread
from clusterucb.studies.simulate.truth import MEASURES

_WIDEST = 240


def show_comparison(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the content of comparison.json."""
    console = console or Console()
    table = _table(result)
    if not console.is_terminal:  # a file has no width
        table.width = console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
    console.print(table, crop=False)
    for line in _remarks(result):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _table(result: dict[str, Any]) -> Table:
    benchmarks = _benchmarks(result)
    table = Table(title="Comparison", title_justify="left")
    table.add_column("method", overflow="fold")
    headings = ["runs", "loss", "against base", f"against {result['reference']}", *benchmarks]
    headings += [
        "pool gradients",
        "pool forwards",
        "tokens",
        "seconds",
        "of full cost",
        "of full seconds",
    ]
    for heading in headings:
        table.add_column(heading, justify="right")
    if base := result["base"]:
        scores = [_percent(base["benchmarks"].get(name)) for name in benchmarks]
        table.add_row("base", "", _with_error(base["loss"]), "", "", *scores)
    for name, row in result["methods"].items():
        table.add_row(name, _runs(row), *(_cells(row, benchmarks) if "loss" in row else ()))
    return table


def _benchmarks(result: dict[str, Any]) -> list[str]:
    return list(
        dict.fromkeys(name for row in result["methods"].values() for name in row.get("benchmarks", ()))
    )


def _runs(row: dict[str, Any]) -> str:
    parts = [f"{row[state]} {state}" for state in ("failed", "unfinished") if row[state]]
    return ", ".join([*([str(row["finished"])] if row["finished"] or not parts else []), *parts])


def _cells(row: dict[str, Any], benchmarks: list[str]) -> Iterator[str]:
    yield _with_error(row["loss"])
    yield _with_error(row["against_base"], "+")
    yield _with_error(row["against_reference"], "+")
    for name in benchmarks:
        yield _percent(row["benchmarks"].get(name))
    for name in ("pool_gradients", "pool_forwards", "tokens"):
        yield f"{row['cost'][name]:,.0f}"
    yield f"{row['cost']['seconds']:,.1f}"
    full = row["of_full_dynamic"]
    yield f"{full['cost']:.0%}"
    yield "-" if full["seconds"] is None else f"{full['seconds']:.0%}"


def _with_error(found: dict[str, Any] | None, sign: str = "") -> str:
    if found is None:
        return "-"
    error = "" if found["error"] is None else f" ± {found['error']:.4f}"
    return f"{found['mean']:{sign}.4f}{error}"


def _percent(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    error = "" if found["error"] is None else f" ± {found['error']:.1%}"
    return f"{found['mean']:.1%}{error}"


def _remarks(result: dict[str, Any]) -> Iterator[str]:
    for cell in result["cells"]:
        if cell["state"] == "failed":
            yield f"{cell['method']}/{cell['repetition']} failed: {cell['failure']}"
    if not result["base"]:
        return
    what = "held-out" if result["on"] == "holdout" else "the target's own (none were held out)"
    alone = [name for name, row in result["methods"].items() if row["finished"] == 1]
    single = f" (where there is one run, {', '.join(alone)}, standard error over rows)" if alone else ""
    yield (
        f"loss on {result['rows']} {what} rows, and benchmarks: mean ± standard deviation over repetitions"
        f"{single}. "
        f"Repetitions share adapter, warmup, features and clusters: their spread leaves out that part."
    )
    yield "against: row by row, over the repetitions that both have; ± is the standard error over rows."
    took = result["computed"]
    yield (
        f"costs: of selecting and training, for one run alone, without evaluation; full is dynamic without a "
        f"bandit, its cost in gradients, with a forward pass as {FORWARD_SHARE:.2f} of one. As runs shared "
        f"what they have in common, the finished ones together took "
        f"{took['pool_gradients']:,} pool gradients, {took['pool_forwards']:,} pool forwards, "
        f"{took['tokens']:,} tokens and {took['seconds']:,.0f} s, with their losses' evaluation."
    )


_COUNTS = ("rows", "tokens", "pool_gradients", "target_gradients", "pool_forwards")
_OF_METHODS = (*_COUNTS, "gradient_equivalents")
_PLAN_WIDEST = 160


def show_plan(plan: dict[str, Any], console: Console | None = None) -> None:
    """Print what `plan` returned."""
    console = console or Console()
    for table in (_steps(plan), _methods(plan), _memory(plan)):
        if not console.is_terminal:  # a file has no width
            table.width = console.measure(
                table, options=console.options.update(max_width=_PLAN_WIDEST)
            ).maximum
        console.print(table, crop=False)
    for line in _plan_remarks(plan):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _steps(plan: dict[str, Any]) -> Table:
    named = plan["method"] if plan["bandit"] == "none" else f"{plan['method']} with {plan['bandit']}"
    excluded = f", {plan['excluded']:,} more cannot be used" if plan["excluded"] else ""
    table = _plan_table(f"Plan: {named}, {plan['rows']:,} usable rows{excluded}", "step")
    for name, step in plan["steps"].items():
        table.add_row(name, *_plan_cells(step, "~" if step["expected"] else ""))
    table.add_row("total", *_plan_cells(plan["total"]), style="bold")
    return table


def _methods(plan: dict[str, Any]) -> Table:
    table = _plan_table("The same settings by method", "method", _OF_METHODS)
    for name, total in plan["methods"].items():
        table.add_row(name, *_plan_cells(total, names=_OF_METHODS))
    return table


def _plan_table(title: str, first: str, names: Sequence[str] = _COUNTS) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for heading in (*(name.replace("_", " ") for name in names), "time", "disk"):
        table.add_column(heading, justify="right")
    return table


def _plan_cells(cost: dict[str, Any], mark: str = "", names: Sequence[str] = _COUNTS) -> Iterator[str]:
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


def _plan_remarks(plan: dict[str, Any]) -> Iterator[str]:
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
            console.print(_measure_table(measure, policies))
    for measure in dict.fromkeys(measure for panel in panels for measure in panel.spreads):
        console.print(f"{measure}: {MEASURES[measure]}", soft_wrap=True)
    seeds = panels[0].seeds
    spread = f"mean ± standard deviation over {seeds} seeds of the draws" if seeds > 1 else "one seed"
    console.print(
        f"top {top_p:g} of the pool; {spread}; uniform: rows drawn without clusters, whose expected recall is"
        " the budget; stale: the top rows of the store that the clusters are from, without a new gradient",
        soft_wrap=True,
    )


def _measure_table(measure: str, policies: dict[str, dict[float, Spread]]) -> Table:
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
