"""A comparison as one table on the screen: a line a method, and what its figures mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from clusterucb.run.costs import FORWARD_SHARE

__all__ = ["show_comparison"]

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
