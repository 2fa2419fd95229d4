"""Results on benchmarks as a table on the screen."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["show_benchmarks"]

_WIDEST = 200


def show_benchmarks(results: dict[str, Any], console: Console | None = None) -> None:
    """Print base and adapter side by side, in percent, each with its standard error."""
    console = console or Console()
    table = Table(title="Benchmarks, in percent", title_justify="left")
    for heading in ("benchmark", "metric"):
        table.add_column(heading, overflow="fold")  # a narrow screen shows the whole name, too
    for heading in ("questions", "base", "adapter", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, found in results["benchmarks"].items():
        for metric, values in found["metrics"].items():
            label = name if "shot" in name else f"{name}, {found['shots']}-shot"
            cells = [label, metric, str(found["questions"])]
            cells += [_percent(values["base"]), _percent(values["adapter"])]
            table.add_row(*map(escape, cells), _percent(values["difference"], "+"))
    if not console.is_terminal:  # a file has no width
        table.width = console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
    console.print(table, crop=False)
    for name, found in results["benchmarks"].items():
        for line in _remarks(name, found):
            console.print(line, soft_wrap=True, highlight=False, markup=False)


def _percent(mean: dict[str, Any], sign: str = "") -> str:
    error = "" if mean["standard_error"] is None else f" ± {100 * mean['standard_error']:.1f}"
    return f"{100 * mean['value']:{sign}.1f}{error}"


def _remarks(name: str, found: dict[str, Any]) -> list[str]:
    lines = []
    if left_out := len(found["left_out"]):
        what = "question is left out, as it was" if left_out == 1 else "questions are left out, as they were"
        lines.append(f"{name}: {left_out} {what} in the target")
    if cut := found["cut"]:
        what = "prompt is longer than the model's window and lost its beginning"
        if cut > 1:
            what = "prompts are longer than the model's window and lost their beginning"
        lines.append(f"{name}: {cut} {what}")
    missing = [what for what, how in found.get("sandbox", {}).items() if how == "none"]
    if missing:
        lines.append(f"{name}: programs were run without protection of {', '.join(missing)} on this system")
    return lines
