"""Whose rows are trained on: the first selection, by any method, and one at any checkpoint.

Features of all rows that are stored at every checkpoint are ranked, without a gradient more. Where some are
not, or are none of gradients, they are computed for the rows that a selector draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusterucb.errors import ConfigError
from clusterucb.features.influence import (
    EndToEnd,
    Subspace,
    own_rows,
    rows_of,
    similarities,
    stored_influence,
    weighted_directions,
)
from clusterucb.features.knowledge import Knowledge
from clusterucb.features.words import ITSELF
from clusterucb.run.costs import Cost
from clusterucb.run.index import Checkpoint
from clusterucb.run.rounds import Round, read_round
from clusterucb.run.session import Session
from clusterucb.runtime.files import made
from clusterucb.selection.keep import Apart, Keep, kept
from clusterucb.selection.selector import ClusterUCB, FullScoring, RowPolicy, RowUCB, Selector
from clusterucb.steps.baselines import SCORES, select_by_scores
from clusterucb.steps.features import clusters_of, directions
from clusterucb.steps.hidden import BLOCK
from clusterucb.steps.less import fresh_beside_stored, weights
from clusterucb.steps.reselection import Drawing, Reselection, keep_round, known_to, remembered
from clusterucb.steps.words import near_by_words
from clusterucb.training.adapter import load_adapter
from clusterucb.training.moments import import_moments


def select(session: Session) -> Round:
    """The first selection; for all methods but those that select in every period, the only one."""
    if session.method.name in SCORES:
        return select_by_scores(session)
    first = session.dir.round(1)
    if session.world.has(first):
        return read_round(first)
    if session.method.ranks_stored:
        return rank(session)
    if not session.method.by_likeness:
        return draw(session)
    checkpoint = session.index.checkpoint()
    go_to(session, checkpoint.folder)
    return reselection(session, first.parent).round(1, session.model, lambda: checkpoint.moments)


def rank(session: Session) -> Round:
    """Round 1 as the top share of all rows, by what is stored of them.

    By likeness no row counts as drawn: it is no influence, for periods to come to go by.
    """
    method, world, clusters = session.method, session.world.at("select"), labels(session)
    rows = _stored(session)
    found = [directions(session, number)[0] for number in range(1, method.stored + 1)]
    whole = method.by_likeness or isinstance(found[0], Subspace)
    aim = found[0] if whole else weighted_directions(found, weights(session))

    def best(part: Path) -> None:
        started = time.monotonic()
        keep = FullScoring(clusters, session.budget.top_p)
        selection = keep(lambda _every: stored_influence(rows, aim, world=world))
        if turns := session.turns:
            blocks = (similarities(rows[at : at + BLOCK], aim) for at in range(0, len(rows), BLOCK))
            selection = turns.select(selection, np.arange(len(rows)), blocks, clusters)
        rule, own = keep_rule(session)
        rule = "now" if method.by_likeness else rule
        selection = kept(rule, selection, clusters, (), apart(session), own)
        if method.by_likeness:
            selection = selection.undrawn
        cost = Cost(rows=keep.spend, seconds=time.monotonic() - started)
        keep_round(part, 1, selection, cost, session.inputs.pooled, session.screen, session.world)

    return made(session.dir.round(1), best, read_round, world=world)


def draw(session: Session) -> Round:
    """Round 1 by fresh features beside those that are stored at the first checkpoint."""
    world = session.world.at("select")

    def drawn(part: Path) -> None:
        check_features(session)
        chooser = selector(session)
        fresh, combined = fresh_beside_stored(session)
        known = known_to(chooser, knowledge(session), combined)
        drawing = Drawing(
            pooled=session.inputs.pooled,
            selector=chooser,
            batch_tokens=session.batch_tokens,
            seed=session.repeat_seed,
            screen=session.screen,
            world=world,
            apart=apart(session),
            turns=session.turns,
        )
        with remembered(fresh, part, world) if session.turns else nullcontext(fresh) as kept_too:
            drawing.draw(part, 1, kept_too, known)

    return made(session.dir.round(1), drawn, read_round, resume=True, world=world)


def reselect(session: Session, checkpoint: Path) -> tuple[Path, Round]:
    """One re-selection, as in a later period, at any checkpoint of this adapter, ours or a Trainer's."""
    if not session.method.reselects:
        raise ConfigError(
            f"--checkpoint {checkpoint}: only method dynamic selects at any checkpoint, and this run's is "
            f"{session.method.name}; leave --checkpoint out"
        )
    if not (checkpoint / "adapter_model.safetensors").exists():
        raise ConfigError(f"--checkpoint {checkpoint}: expected a folder with adapter_model.safetensors")
    go_to(session, checkpoint)
    moments = import_moments(checkpoint, session.model)
    name = f"{checkpoint.absolute().name}-{Checkpoint(checkpoint, moments).fingerprint}"
    folder = session.dir.path / "selections" / name
    return folder / "1", reselection(session, folder).round(1, session.model, lambda: moments)


def go_to(session: Session, checkpoint: Path) -> None:
    """Give the model the weights of a checkpoint to select at, if what is stored fits it."""
    labels(session)
    check_features(session)
    load_adapter(session.model, checkpoint)


def check_features(session: Session) -> None:
    """Refuse to compare fresh features with stored ones that another model or projection made."""
    store = session.index.store()
    if not session.method.words:
        session.index.check(store, model=session.made_with_model)


def keep_rule(session: Session) -> tuple[Keep, NDArray[np.bool_] | None]:
    """That of the settings, where rows are selected more than once, and rows of the task itself, (N,).

    Of these `auto` keeps half of a selection, where features tell by now which they are; where they tell that
    none is even near, what helps at the moment alone is no guide, and the moving mean is.
    """
    chosen, method = session.config.selection, session.method
    if chosen.keep != "auto" and method.reselects:
        return chosen.keep, None
    if not (method.reselects and method.by_likeness) or chosen.aim != "mean" or session.turns:
        return "now", None
    aim, counts = directions(session)[0], np.bincount(session.inputs.target.codes)
    assert isinstance(aim, np.ndarray)  # that is what a mean is
    features = session.index.features()
    found, near = own_rows(features, aim, counts, least=ITSELF if method.words else 1.0)
    if method.words:
        near = near_by_words(session, stored_influence(features, aim))
    if not near:
        session.inputs.say_once(
            "no row of the pool is near the task: each period selects by all that was learned, not by the "
            "present alone (with --keep now it does)"
        )
        return "mean", None
    if not found.any():
        return "now", None
    session.inputs.say_once(
        f"{found.sum()} rows of the pool are of the task itself: they have half of every selection, as far "
        "as they go (with --keep now they leave as they are learned)"
    )
    return "now", found


def apart(session: Session) -> Apart | None:
    """By what near duplicates give way, as the settings say: by what is stored of all rows."""
    near = session.config.selection.near_duplicates
    return Apart(near, partial(rows_of, _stored(session))) if near < 1 else None


def _stored(session: Session) -> EndToEnd:
    """Features of the rows to choose from, at the checkpoints where they are kept."""
    return EndToEnd([session.index.features(number) for number in range(1, session.method.stored + 1)])


def labels(session: Session) -> NDArray[np.int64]:
    """The cluster of each usable row, (N,); zeros where no bandit needs clusters."""
    if not session.method.budgeted:
        return np.zeros(len(session.inputs.pooled), np.int64)
    return session.index.labels(clusters_of(session))


def selector(session: Session) -> Selector:
    """How rows are drawn and kept, as the settings say."""
    budget, clusters, policy = session.budget, labels(session), session.policy
    chosen = session.config.selection
    if not session.method.budgeted:
        return FullScoring(clusters, budget.top_p)
    if isinstance(policy, RowPolicy):
        return RowUCB(clusters, policy, budget.budget, budget.top_p)
    return ClusterUCB(
        clusters,
        policy,
        budget.budget,
        budget.cold_start,
        budget.top_p,
        chosen.draw_batch,
        chosen.draw_batch_arms,
        chosen.draw_order,
    )


def reselection(
    session: Session, folder: Path, spent: Callable[[float], None] = lambda _seconds: None
) -> Reselection:
    """What selects at a live model, with rounds in `folder`."""
    keep, own = keep_rule(session)
    return Reselection(
        pooled=session.inputs.pooled,
        targeted=session.inputs.targeted,
        selector=selector(session),
        projection=session.projection,
        folder=folder,
        seed=session.repeat_seed,
        formula=session.config.gradients.formula,
        top=session.method.top,
        batch_tokens=session.batch_tokens,
        knowledge=knowledge(session),
        aim=session.config.selection.aim,
        keep=keep,
        apart=apart(session),
        own=own,
        first=session.dir.round(1) if folder == session.dir.path / "rounds" else None,
        screen=session.screen,
        spent=spent,
        turns=session.turns,
        world=session.world.at("select"),
        room=session.room,
    )


def knowledge(session: Session) -> Knowledge | None:
    """What the stored features tell of rows before they are drawn; nothing where all are scored."""
    if not session.method.budgeted:
        return None
    features = session.index.features()
    if not session.method.by_likeness:
        return Knowledge(features)
    return Knowledge(features, stored_influence(features, directions(session)[0]))
