"""The procedures, each on one page."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clusterucb.config import Config
from clusterucb.report.page import report_run
from clusterucb.run.session import Session
from clusterucb.runtime.processes import ALONE, World
from clusterucb.runtime.screen import Screen
from clusterucb.steps.card import write_card
from clusterucb.steps.evaluate import benchmark, evaluate
from clusterucb.steps.features import cluster, features, gradients
from clusterucb.steps.growth import indexing
from clusterucb.steps.select import select
from clusterucb.steps.summary import remark, summarise
from clusterucb.steps.train import train, warmup


def procedure(session: Session) -> dict[str, Any]:
    """The procedure that the settings name (`method`), from a pool and a target to an adapter.

    Like each of those below it returns the content of summary.json, and goes on where it was interrupted.
    """
    return {"dynamic": dynamic, "less": less}.get(session.method.name, baseline)(session)


def index(
    config: Config, screen: Screen | None = None, world: World = ALONE, old: Path | None = None
) -> None:
    """What a run knows before it has a target: runs with any begin here (`--index`), without a gradient more.

    One that is there, of another pool, becomes this one's, by the gradients of new rows alone; where there is
    none, one in the folder `old` is grown from so. Interrupted at any point, the same call goes on.
    """
    with indexing(config.without_target.with_absolute_paths(), old, screen, world) as session:
        session.check_pool()
        warmup(session)
        for number in range(1, session.method.stored + 1):
            features(session, number)
        if session.method.budgeted:
            cluster(session)
        write_card(session)


def dynamic(session: Session) -> dict[str, Any]:
    """Dynamic-ClusterUCB (arXiv 2506.10288), from a pool and a target to an adapter.

    With `bandit: none` it is Dynamic (doi 10.1016/j.knosys.2025.114144): all rows are scored in every period.
    Returns the content of summary.json. Interrupted at any point, the same call goes on.
    """
    session.check_inputs()
    remark(session)
    warmup(session)  # a short training on random rows
    gradients(session)  # features of all rows there
    if session.method.budgeted:
        cluster(session)  # the arms
    select(session)  # period 1: the plain top share
    train(session)  # from the initial adapter; each later period's start re-selects
    return _results(session)


def less(session: Session) -> dict[str, Any]:
    """LESS (Xia et al. 2024, arXiv 2402.04333), from a pool and a target to an adapter.

    With `bandit: none` it is the original, with `bandit: clusterucb` the one that ClusterUCB makes cheaper.
    Returns the content of summary.json. Interrupted at any point, the same call goes on.
    """
    session.check_inputs()
    remark(session)
    warmup(session)  # epochs on a random share, a checkpoint after each
    gradients(session)  # features of all rows: at the first, or at all without a bandit
    if session.method.budgeted:
        cluster(session)  # the arms, by the first checkpoint's features
    select(session)  # once, by the sum over checkpoints
    train(session)  # from the initial adapter, on the same rows in every period
    return _results(session)


def baseline(session: Session) -> dict[str, Any]:
    """A selection without gradients (random, bm25, rds, head, loss), and all that follows any selection."""
    session.check_inputs()
    remark(session)
    select(session)  # once, for all periods
    train(session)
    return _results(session)


def _results(session: Session) -> dict[str, Any]:
    """How good the adapter is, what all of it cost, and the page that shows both."""
    evaluate(session)
    benchmark(session)
    summary = summarise(session)
    if find_spec("plotly"):
        session.world.lead(lambda: report_run(session.dir, session.inputs.pool))
    else:
        session.screen.say("report.html is left out, for want of one package: pip install plotly")
    return summary
