"""Results on benchmarks as a table on the screen."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["show_benchmarks"]


def show_benchmarks(results: dict[str, Any], console: Console | None = None) -> None:
    """Print base and adapter side by side, in percent, each with its standard error."""
    console = console or Console()
    table = Table(title="Benchmarks, in percent", title_justify="left")
    for heading in ("benchmark", "metric"):
        table.add_column(heading)
    for heading in ("questions", "base", "adapter", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, found in results["benchmarks"].items():
        for metric, values in found["metrics"].items():
            cells = [f"{name} ({found['shots']} shots)", metric, str(found["questions"])]
            cells += [_percent(values["base"]), _percent(values["adapter"])]
            table.add_row(*map(escape, cells), _percent(values["difference"], "+"))
    console.print(table)
    for name, found in results["benchmarks"].items():
        for line in _remarks(name, found):
            console.print(line, soft_wrap=True, highlight=False, markup=False)


def _percent(mean: dict[str, Any], sign: str = "") -> str:
    error = "" if mean["standard_error"] is None else f" ± {100 * mean['standard_error']:.1f}"
    return f"{100 * mean['value']:{sign}.1f}{error}"


def _remarks(name: str, found: dict[str, Any]) -> list[str]:
    lines = []
    if found["left_out"]:
        lines.append(f"{name}: {len(found['left_out'])} questions are left out, as they were in the target")
    if found["cut"]:
        lines.append(
            f"{name}: {found['cut']} prompts are longer than the model's window and lost their beginning"
        )
    missing = [what for what, how in found.get("sandbox", {}).items() if how == "none"]
    if missing:
        lines.append(f"{name}: programs were run without protection of {', '.join(missing)} on this system")
    return lines
