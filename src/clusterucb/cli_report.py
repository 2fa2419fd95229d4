"""The command `report`: its options, and what becomes of them. cli.py registers it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clusterucb.errors import ConfigError

__all__ = ["report"]


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DIR...",
            help="Run directories, finished or not; the directory of a comparison stands for its runs.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="The page; report.html in DIR unless there are several.", metavar="FILE"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but errors.")] = False,
) -> None:
    """One page of one run, or of several side by side: what was selected, how good, at what cost, and why."""
    if not runs:
        raise ConfigError("report needs DIR...; see --help")
    from clusterucb.report.page import report as write

    path = write([*map(Path, runs)], Path(out) if out else None)
    if not quiet:
        typer.echo(f"{path}")
