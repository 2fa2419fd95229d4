"""The command `export`: its options, and what becomes of them. cli.py registers it."""

from __future__ import annotations

from typing import Annotated

import typer

from clusterucb.errors import ConfigError

__all__ = ["export"]


def export(
    run: Annotated[
        str | None,
        typer.Argument(metavar="DIR", help="A run directory, finished or not.", show_default=False),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="Who is to read it: trl, llamafactory or axolotl.", metavar="FORMAT"),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option("--round", min=1, help="Rows of this round; without it of all rounds, each row once."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="The folder; exports/FORMAT in DIR without it.", metavar="FOLDER")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but errors.")] = False,
) -> None:
    """The selected rows as training data that trl, LLaMA-Factory or axolotl read as they are."""
    if not (run and form):
        raise ConfigError("export needs DIR and --format trl|llamafactory|axolotl; see --help")
    from clusterucb.run.export import export as write

    found = write(run, form, number=number, out=out)
    if quiet:
        return
    if found.left_out:
        name, why = next(iter(found.left_out.items()))
        typer.echo(f"{len(found.left_out)} rows that {form} would skip are left out, first {name}: {why}")
    if found.learnt:
        typer.echo(f"{found.learnt} rows have a given beginning of an answer, which {form} will learn, too")
    typer.echo(f"{found.folder}")
