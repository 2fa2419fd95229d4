"""The instruction data sets that can be prepared, and what became of their rows, as tables on the screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clusterucb.sources import SOURCES, Report

__all__ = ["show_reports", "show_sources"]


def show_sources(console: Console | None = None) -> None:
    """Print every data set with its licence and the raw files it is made from."""
    console = console or Console(highlight=False)
    for source in SOURCES.values():
        lines = {
            "licence": source.licence,
            "files": ", ".join(source.files),
            "from": source.url,
            "hub": source.hub.removeprefix("hub:"),
        }
        console.print(f"[bold]{source.name}[/bold]  {escape(source.title)}", soft_wrap=True)
        for name, text in lines.items():
            console.print(f"    {name:<8} {escape(text)}", soft_wrap=True)


def show_reports(reports: Sequence[Report], out: str, console: Console | None = None) -> None:
    """Print how many rows were read, written and dropped, and why."""
    table = Table(title=f"Written to {escape(out)}", title_justify="left")
    for heading in ("file", "read", "written", "dropped"):
        table.add_column(heading, justify="left" if heading in ("file", "dropped") else "right")
    for report in reports:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items())
        table.add_row(f"{report.name}.jsonl", f"{report.read:,}", f"{report.written:,}", escape(dropped))
    (console or Console()).print(table)
