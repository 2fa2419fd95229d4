"""Tables on the screen: one way to print them, and those of a run, of benchmarks and of data sets."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clusterucb.data.files import HUB
from clusterucb.report.bill import in_words
from clusterucb.report.quality import paired
from clusterucb.report.section import with_error
from clusterucb.runtime.files import read_json
from clusterucb.sources.catalogue import SOURCES

if TYPE_CHECKING:
    from clusterucb.run.session import Session
    from clusterucb.sources.conversion import Report
    from clusterucb.sources.source import Source
    from clusterucb.steps.query import Ranking

_WIDEST = 240
"""Characters of a table in a file, which has no width of its own."""
_RANKED = 10
"""Rows of a ranking that are shown; all are in its lines of JSON."""


def print_table(
    console: Console,
    title: str,
    headings: Sequence[str],
    rows: Iterable[Iterable[str]],
    *,
    words: Sequence[str] = (),
    whole: bool = False,
    total: bool = False,
) -> None:
    """Print a table whose first column is of words and whose others are of numbers, on the right.

    All cells are text, whatever brackets they hold. A terminal's width is kept; in a file nothing is folded.
    `words` are columns of words besides the first; they fold, and they alone where numbers are to be `whole`.
    """
    table = Table(title=escape(title), title_justify="left")
    for heading in headings:
        if heading in (headings[0], *words):
            table.add_column(escape(heading), overflow="fold")
        else:
            table.add_column(escape(heading), justify="right", no_wrap=whole)
    for row in rows:
        table.add_row(*map(escape, row))
    if total:
        table.rows[-1].style = "bold"
    if not console.is_terminal:
        table.width = console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
    console.print(table, crop=False)


def say(console: Console, line: str) -> None:
    """Print a line as it is; a terminal breaks it, a file does not."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def show(session: Session, summary: dict[str, Any], console: Console | None = None) -> None:
    """Print what was selected, how good the adapter is and what it cost."""
    console = console or Console()
    _show_selected(summary["selected"], console)
    if session.dir.evaluation.exists():
        _show_evaluated(read_json(session.dir.evaluation), console)
    if session.config.evaluation.tasks:
        show_benchmarks(read_json(session.dir.benchmarks / "results.json"), console)
    _show_cost(summary, console)
    for line in last_lines(session, summary):
        say(console, line)


def _show_selected(rounds: list[dict[str, Any]], console: Console) -> None:
    names = [f"period {found['round']}" for found in rounds] if len(rounds) > 1 else ["rows"]
    sources = [Counter(found["sources"]) for found in rounds]
    total = sum(sources, Counter[str]())
    rows = ([source, *(str(found[source]) for found in sources)] for source, _ in total.most_common())
    print_table(console, "Selected rows by source", ["source", *names], rows)


def _show_evaluated(result: dict[str, Any], console: Console) -> None:
    rows = []
    for name in ("base", "adapter"):
        error = result[name]["standard_error"]
        rows.append([name, f"{result[name]['loss']:.4f}", "-" if error is None else f"{error:.4f}"])
    title = f"Loss on {evaluated_on(result)}"
    print_table(console, title, ["model", "loss", "standard error"], rows)


def evaluated_on(result: dict[str, Any]) -> str:
    """What rows the loss is of, as evaluation.json tells."""
    rows = "row" if result["rows"] == 1 else "rows"
    held = f"held-out {rows}" if result["on"] == "holdout" else f"{rows} of the target (none were held out)"
    return f"{result['rows']} {held}"


def _show_cost(summary: dict[str, Any], console: Console) -> None:
    counts = ["rows", "tokens", "pool_gradients", "target_gradients"]
    counts += ["pool_forwards"] if summary["total"]["pool_forwards"] else []
    headings = ["step", *(count.replace("_", " ") for count in counts), "seconds"]
    rows = (
        [name, *(f"{cost[key]:,}" for key in counts), f"{cost['seconds']:.1f}"]
        for name, cost in [*summary["steps"].items(), ("total", summary["total"])]
    )
    print_table(console, "Cost", headings, rows, total=True)


def last_lines(session: Session, summary: dict[str, Any]) -> Iterator[str]:
    """What a colleague would say of it, what happened, what it cost, and where to look."""
    for said in summary["remarks"]:
        yield f"note: {said}"
    yield f"{_selected(summary['selected'])} {_moved(read_json(session.dir.evaluation))}"
    yield from in_words(summary["bill"])
    if session.config.evaluation.tasks:
        yield "Benchmarks are counted in none of this."
    page = shlex.quote(str(session.dir.report))
    yield f"Everything is in {session.dir.path}. To look at it: python -m webbrowser {page}"


def _selected(rounds: list[dict[str, Any]]) -> str:
    kept = ", ".join(dict.fromkeys(f"{found['selected']:,}" for found in rounds))
    periods = f", {len(rounds)} times," if len(rounds) > 1 else ""
    return f"{kept} of {rounds[0]['of']:,} rows were selected{periods} and trained on."


def _moved(result: dict[str, Any]) -> str:
    """How the loss on the evaluated rows changed, row by row."""
    base, adapter = result["base"], result["adapter"]
    change, error = paired(adapter, base)
    return (
        f"The loss on {evaluated_on(result)} {'fell' if change < 0 else 'rose'} from {base['loss']:.4f} to "
        f"{adapter['loss']:.4f}, row by row by {with_error(abs(change), error)}."
    )


def show_ranking(found: Ranking, console: Console | None = None) -> None:
    """Print an index's best rows for one target."""
    shown = range(min(_RANKED, len(found.rows)))
    rows = ([found.ids[i], f"{found.scores[i]:.4f}", found.nearest[i]] for i in shown)
    title = f"Best of {len(found.rows)} rows for {found.target or 'the target'}"
    print_table(console or Console(), title, ["row", "score", "nearest"], rows, words=["nearest"])


def show_benchmarks(results: dict[str, Any], console: Console | None = None) -> None:
    """Print base and adapter side by side, in percent, each with its standard error."""
    console = console or Console()
    headings = ["benchmark", "metric", "questions", "base", "adapter", "difference"]
    rows = (
        [name if "shot" in name else f"{name}, {found['shots']}-shot", metric, *_compared(found, values)]
        for name, found in results["benchmarks"].items()
        for metric, values in found["metrics"].items()
    )
    print_table(console, "Benchmarks, in percent", headings, rows, words=["metric"], whole=True)
    for name, found in results["benchmarks"].items():
        for line in _remarks(found):
            say(console, f"{name}: {line}")


def _compared(found: dict[str, Any], values: dict[str, Any]) -> Iterator[str]:
    yield str(found["questions"])
    for name, form in (("base", ".1f"), ("adapter", ".1f"), ("difference", "+.1f")):
        value, error = values[name]["value"], values[name]["standard_error"]
        yield with_error(100 * value, None if error is None else 100 * error, form)


def _remarks(found: dict[str, Any]) -> Iterator[str]:
    if left_out := len(found["left_out"]):
        what = "question is left out, as it was" if left_out == 1 else "questions are left out, as they were"
        yield f"{left_out} {what} in the target"
    if cut := found["cut"]:
        what = "prompt is longer than the model's window and lost its beginning"
        if cut > 1:
            what = "prompts are longer than the model's window and lost their beginning"
        yield f"{cut} {what}"
    missing = [what for what, how in found.get("sandbox", {}).items() if how == "none"]
    if missing:
        yield f"programs were run without protection of {', '.join(missing)} on this system"


def show_sources(console: Console | None = None) -> None:
    """Print every data set with its licence, the sets of raw files that it is made from, and their pages."""
    console = console or Console(highlight=False)
    for source in SOURCES.values():
        console.print(f"[bold]{source.name}[/bold]: {escape(source.title)}", soft_wrap=True)
        for line in _facts(source):
            say(console, f"    {line}")


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
    rows = []
    for report in reports:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items())
        rows.append([f"{report.name}.jsonl", f"{report.read:,}", f"{report.written:,}", dropped])
    headings = ["file", "read", "written", "dropped"]
    print_table(console or Console(), f"Written to {out}", headings, rows, words=["dropped"])
