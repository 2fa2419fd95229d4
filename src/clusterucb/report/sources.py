"""The instruction data sets that can be prepared, and what became of their rows, as tables on the screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clusterucb.data.files import HUB
from clusterucb.sources import SOURCES, Report, Source

__all__ = ["show_reports", "show_sources"]


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
