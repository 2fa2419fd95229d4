"""Whose rows are trained on: round 1, and a selection at any checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import ConfigError
from clusterucb.features.influence import Rows, stored_influence
from clusterucb.features.knowledge import Knowledge
from clusterucb.gradients.adam import Moments
from clusterucb.run.artifacts import (
    check_features,
    checkpoint_fingerprint,
    directions_at,
    labels,
    need,
    store,
)
from clusterucb.run.costs import Cost
from clusterucb.run.rounds import Round, read_round, write_round
from clusterucb.run.session import Session
from clusterucb.runtime.files import publish_folder
from clusterucb.selection.linear_ucb import LinearUCB
from clusterucb.selection.selector import ClusterUCB, FullScoring, RowUCB, Selector
from clusterucb.steps.baselines import BASELINES, select_baseline
from clusterucb.steps.reselection import Reselection
from clusterucb.training.adapter import load_adapter
from clusterucb.training.moments import import_moments


def select(session: Session) -> Round:
    """Round 1: all rows are scored at the warmup checkpoint already, so the plain top share is taken.

    With `features: hidden` no row is: the bandit selects there, as in any later period. The baselines need no
    checkpoint.
    """
    if session.config.method in BASELINES:
        return select_baseline(session)
    if not session.world.has(session.dir.round(1)):
        if session.config.clustering.features == "hidden":
            moments = _go_to(session, need(session, session.dir.warmup, "warmup"))
            return reselection(session, session.dir.round(1).parent).round(1, session.model, lambda: moments)
        rank(session, store(session).features, directions_at(session))
    return read_round(session.dir.round(1))


def rank(session: Session, features: Rows, directions: NDArray[np.floating]) -> None:
    """Publish round 1: the top share of all rows by features (N, d) that are there, for directions (S, d)."""
    started = time.monotonic()
    keep = FullScoring(labels(session), session.config.selection.top_p)
    world = session.world.at("select")
    selection = keep(lambda _every: stored_influence(features, directions, world=world))
    cost = Cost(rows=keep.spend, seconds=time.monotonic() - started)
    with publish_folder(session.dir.round(1), world=world) as part:
        if world.leads:
            summary = write_round(part, 1, selection, [], session.pool, session.pooled.rows, cost)
    if world.leads:
        session.screen.tell("selected", **summary)


def reselect(session: Session, checkpoint: Path) -> tuple[Path, Round]:
    """One re-selection, as in a later period, at any checkpoint of this adapter, ours or a Trainer's."""
    if session.config.method != "dynamic":
        raise ConfigError(
            f"--checkpoint {checkpoint}: only method dynamic selects at any checkpoint, and this run's is "
            f"{session.config.method}; leave --checkpoint out"
        )
    moments = _go_to(session, _adapter_folder(checkpoint))
    name = f"{checkpoint.absolute().name}-{checkpoint_fingerprint(checkpoint, moments)}"
    folder = session.dir.path / "selections" / name
    return folder / "1", reselection(session, folder).round(1, session.model, lambda: moments)


def _go_to(session: Session, checkpoint: Path) -> Moments:
    """Give the model the weights of a checkpoint to select at; returns Adam's moments there."""
    _ = labels(session)
    check_features(session)
    load_adapter(session.model, checkpoint)
    return import_moments(checkpoint, session.model)


def reselection(
    session: Session, folder: Path, spent: Callable[[float], None] = lambda _seconds: None
) -> Reselection:
    """What selects by fresh gradients, with rounds in `folder`: the bandit, or all rows without one."""
    return Reselection(
        pooled=session.pooled,
        targeted=session.targeted,
        selector=_selector(session),
        projection=session.projection,
        folder=folder,
        seed=session.repeat_seed,
        formula=session.config.gradients.formula,
        batch_tokens=session.config.gradients.batch_tokens,
        knowledge=_knowledge(session) if session.config.budgeted else None,
        screen=session.screen,
        spent=spent,
        world=session.world.at("select"),
    )


def _knowledge(session: Session) -> Knowledge:
    """What the stored features tell of rows before they are drawn."""
    features = store(session).features
    if session.config.clustering.features == "gradients":
        return Knowledge(features)
    return Knowledge(features, stored_influence(features, directions_at(session)))


def _selector(session: Session) -> Selector:
    """How rows are drawn and kept, as the settings say."""
    chosen, clusters = session.config.selection, labels(session)
    if not session.config.budgeted:
        return FullScoring(clusters, chosen.top_p)
    if isinstance(session.policy, LinearUCB):
        return RowUCB(clusters, session.policy, budget=chosen.cap, top_p=chosen.top_p)
    return ClusterUCB(
        clusters,
        session.policy,
        budget=chosen.cap,
        cold_start=chosen.csp,
        top_p=chosen.top_p,
        draw_batch=chosen.draw_batch,
        draw_batch_arms=chosen.draw_batch_arms,
        draw_order=chosen.draw_order,
    )


def _adapter_folder(checkpoint: Path) -> Path:
    if not (checkpoint / "adapter_model.safetensors").exists():
        raise ConfigError(f"--checkpoint {checkpoint}: expected a folder with adapter_model.safetensors")
    return checkpoint
