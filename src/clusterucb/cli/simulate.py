"""The command `simulate`: its options, and what becomes of them. main.py registers it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from clusterucb.cli.options import Quiet, argument, option
from clusterucb.errors import ConfigError

Number = TypeVar("Number", int, float)


def simulate(
    stores: Annotated[
        list[Path] | None,
        argument(
            "Run directories or folders of features, each a problem of its own; or LESS's gradients of "
            "training files (folders with all_orig.pt), which make one pool and need --target.",
            "STORE...",
        ),
    ] = None,
    policies: Annotated[
        str, option("Published policies (all five by default), and your own as module:callable.", "NAME,...")
    ] = "ucb_beta,ucb1,ucb_threshhard,ucb_threshnormal,random",
    budgets: Annotated[
        str, option("Shares of the pool that may be looked at, cold start included, with commas.", "N,...")
    ] = "0.05,0.1,0.2,0.4,0.8",
    k: Annotated[
        str | None,
        option(
            "Numbers of clusters; by default the square root of the rows, at most half of the smallest "
            "budget. Clusters are the same for all seeds.",
            "N,...",
            "--k",
        ),
    ] = None,
    csp: Annotated[str, option("Cold starts: shares of every cluster drawn first.", "N,...")] = "0.02",
    seeds: Annotated[int, option("Repetitions, each with draws of its own.", "N", min=1)] = 10,
    top_p: Annotated[float, option("The share of the pool that is selected.", "N")] = 0.05,
    draw_batch: Annotated[int, option("Rows drawn at once.", "N")] = 8,
    centre: Annotated[
        bool,
        option("Take the mean feature from each before clustering.", None, "--centre/--no-centre"),
    ] = True,
    clusters_from: Annotated[
        list[Path] | None,
        option(
            "A store of the same rows at another checkpoint: the clusters are made of its features, and its "
            "influence is shown as `stale`. Of LESS's, one for each STORE, in the same order.",
            "STORE",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        Path | None, option("LESS's gradients of the task, at the STOREs' checkpoint.", "STORE")
    ] = None,
    clusters_target: Annotated[
        Path | None, option("The same at the checkpoint of --clusters-from, for `stale`.", "STORE")
    ] = None,
    subtasks: Annotated[
        int, option("Subtasks of LESS's task: mmlu 57, tydiqa 9, bbh 27, others 1.", "N", min=1)
    ] = 1,
    out: Annotated[
        str | None, option("The folder for simulation.csv, draws.csv and simulation.html.", "DIR")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Policies, budgets and clusters tried on stored features, without a model: what would a bandit find?"""
    if not (stores and out):
        raise ConfigError("simulate needs STORE... and --out DIR; see --help")
    from clusterucb.studies.simulate.grid import Grid, named_policies

    grid = Grid(
        budgets=_numbers("--budgets", budgets, float),
        ks=_numbers("--k", k, int) if k else (None,),
        csps=_numbers("--csp", csp, float),
        seeds=range(seeds),
        top_p=top_p,
        draw_batch=draw_batch,
        centre=centre,
    )
    named = named_policies(_parts("--policies", policies))

    from clusterucb.cli.study_tables import show_simulation
    from clusterucb.run.directory import RunDir
    from clusterucb.runtime.screen import Screen
    from clusterucb.studies.simulate.outcomes import spreads, write_plot, write_tables
    from clusterucb.studies.simulate.simulate import simulate as run
    from clusterucb.studies.simulate.stores import read_problems

    problems = read_problems(stores, clusters_from or (), target, subtasks, clusters_target)
    folder = RunDir(out)
    with folder.owned():
        outcomes = run(problems, named, grid, track=Screen(quiet=quiet).track)
        write_tables(folder.path, outcomes)
        shown = spreads(outcomes)
        write_plot(folder.path / "simulation.html", shown, top_p)
    if not quiet:
        show_simulation(shown, top_p)
        typer.echo(f"{folder.path}")


def _parts(flag: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ConfigError(f"{flag} {text!r}: expected at least one, with commas between")
    return parts


def _numbers(flag: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(part) for part in _parts(flag, text)]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"{flag} {text}: expected {what} with commas between") from None
