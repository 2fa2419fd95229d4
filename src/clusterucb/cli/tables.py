"""A run's result and cost as tables on the screen.

Results on benchmarks as a table on the screen.

The instruction data sets that can be prepared, and what became of their rows, as tables on the screen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clusterucb.data.files import HUB
from clusterucb.run.session import Session
from clusterucb.runtime.files import read_json
from clusterucb.sources.catalogue import SOURCES
from clusterucb.sources.conversion import Report
from clusterucb.sources.source import Source


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


def show_sources(console: Console | None = None) -> None:
    """Print every data set with its licence, the sets of raw files that it is made from, and their pages."""
    console = console or Console(highlight=False)
    for source in SOURCES.values():
        console.print(f"[bold]{source.name}[/bold]: {escape(source.title)}", soft_wrap=True)
        for line in _facts(source):
            console.print(f"    {line}", markup=False, soft_wrap=True)


def _facts(source: Source) -> Iterator[str]:
    yield f"licence: {source.licence}"
    for i, layout in enumerate(source.layouts):
        for j, file in enumerate(layout):
            yield f"{'and' if j else 'or' if i else 'from'} {file}"
    yield from source.url.split(" or ")
    if (repository := source.hub.removeprefix(HUB)) not in source.url:
        yield f"on the hub: {repository}"


def show_reports(reports: Sequence[Report], out: str, console: Console | None = None) -> None:
    """Print how many rows were read, written and dropped, and why."""
    table = Table(title=f"Written to {escape(out)}", title_justify="left")
    for heading in ("file", "read", "written", "dropped"):
        table.add_column(heading, justify="left" if heading in ("file", "dropped") else "right")
    for report in reports:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items())
        table.add_row(f"{report.name}.jsonl", f"{report.read:,}", f"{report.written:,}", escape(dropped))
    (console or Console()).print(table)
