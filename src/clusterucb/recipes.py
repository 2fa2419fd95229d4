"""The procedures, each on one page."""

from __future__ import annotations

from typing import Any

from clusterucb import steps
from clusterucb.baselines.select import BASELINES
from clusterucb.session import Session

__all__ = ["baseline", "dynamic", "procedure"]


def procedure(session: Session) -> dict[str, Any]:
    """The procedure that the settings name (`method`), from a pool and a target to an adapter.

    Returns the content of summary.json. Interrupted at any point, the same call goes on.
    """
    return {"dynamic": dynamic, **dict.fromkeys(BASELINES, baseline)}[session.config.method](session)


def dynamic(session: Session) -> dict[str, Any]:
    """Dynamic-ClusterUCB (Wang et al. 2025, arXiv 2506.10288), from a pool and a target to an adapter.

    Returns the content of summary.json. Interrupted at any point, the same call goes on.
    """
    session.check_inputs()
    steps.warmup(session)  # a short training on random rows
    steps.gradients(session)  # features of all rows there
    steps.cluster(session)  # the arms
    steps.select(session)  # period 1: the plain top share
    steps.train(session)  # from the initial adapter; a bandit re-selects at each later period's start
    steps.evaluate(session)
    steps.benchmark(session)
    return steps.summarise(session)


def baseline(session: Session) -> dict[str, Any]:
    """A selection without gradients (random, bm25, rds, loss), and then all that follows any selection.

    Returns the content of summary.json. Interrupted at any point, the same call goes on.
    """
    session.check_inputs()
    steps.select(session)  # once, for all periods
    steps.train(session)
    steps.evaluate(session)
    steps.benchmark(session)
    return steps.summarise(session)
