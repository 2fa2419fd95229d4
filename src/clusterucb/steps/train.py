"""The warmup and the training of the adapter, period by period."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback

from clusterucb.run.artifacts import already_trained, check_features, need, publish_checkpoint
from clusterucb.run.costs import Cost
from clusterucb.run.rounds import read_round
from clusterucb.run.session import Session
from clusterucb.steps.baselines import _refuse_baseline
from clusterucb.steps.evaluate import _watch
from clusterucb.steps.select import reselection
from clusterucb.training.adapter import load_adapter
from clusterucb.training.callbacks import DynamicSelection, WholeCheckpoints
from clusterucb.training.data import SwappableRows
from clusterucb.training.finetune import Finetuned, finetune, optimizer_steps, training_clock


def warmup(session: Session) -> None:
    """Train the adapter for a few steps on random pool rows: the checkpoint of the first gradients."""
    _refuse_baseline(session, "warmup")
    states = session.dir.path / "warmup.states"
    if already_trained(session, session.dir.warmup, states):
        return
    settings, steps = session.config.training, session.config.warmup.warmup_steps
    rows = random_rows(len(session.training_tokens), steps * settings.batch_size, session.config.seed)
    dataset = SwappableRows(session.training_tokens, rows)
    seed, clock = session.config.seed, training_clock(states, session.world)
    finetuned = train_from_initial(session, "warm up", dataset, states, 1, clock, seed)
    _publish_trained(session, session.dir.warmup, states, finetuned, rows)


def train(session: Session) -> None:
    """Train from the initial adapter on the selected rows.

    The method `dynamic` selects them anew at the start of each period but the first; all others have one
    selection for all periods.
    """
    if already_trained(session, session.dir.adapter, session.dir.training):
        return
    first = read_round(need(session, session.dir.round(1), "select"))
    if session.config.method != "dynamic":
        train_on(session, first.rows, session.dir.adapter, watched=True)
        return
    check_features(session)
    clock = training_clock(session.dir.training, session.world)
    rounds = session.dir.round(1).parent
    epochs_per_period = session.config.training.epochs_per_period
    dynamic = DynamicSelection(
        session.training_tokens,
        first.rows,
        reselection(session, rounds, clock.pause),
        epochs_per_period=epochs_per_period,
    )
    callbacks = (dynamic, _watch(session, len(first.rows), clock))
    finetuned = _train_periods(session, dynamic.dataset, session.dir.training, clock, callbacks)
    selected = [read_round(session.dir.round(n + 1)).rows for n in range(session.config.training.periods)]
    trained = np.tile(np.concatenate(selected), epochs_per_period)
    _publish_trained(session, session.dir.adapter, session.dir.training, finetuned, trained)


def train_on(session: Session, rows: NDArray[np.int64], folder: Path, *, watched: bool = False) -> None:
    """Train on the same usable rows in every period: what a selection is compared with.

    Args:
        session: whose initial adapter, schedule and seed are used.
        rows: (L,), places among the usable rows.
        folder: becomes the adapter.
        watched: keep the loss on held-out rows after each period.
    """
    states = folder.with_name(f"{folder.name}.states")
    if already_trained(session, folder, states):
        return
    dataset = SwappableRows(session.training_tokens, rows)
    clock, settings = training_clock(states, session.world), session.config.training
    callbacks = (_watch(session, len(rows), clock),) if watched else ()
    finetuned = _train_periods(session, dataset, states, clock, callbacks)
    trained = np.tile(rows, settings.periods * settings.epochs_per_period)
    _publish_trained(session, folder, states, finetuned, trained)


def random_rows(total: int, count: int, seed: int) -> NDArray[np.int64]:
    """`count` of `total` rows in random order; none comes again before all have come."""
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(total) for _ in range(-(-count // total))]
    return np.concatenate(rounds)[:count].astype(np.int64)


def _train_periods(
    session: Session,
    dataset: SwappableRows,
    states: Path,
    clock: WholeCheckpoints,
    callbacks: tuple[TrainerCallback, ...] = (),
) -> Finetuned:
    """All periods under one schedule."""
    settings = session.config.training
    epochs = settings.periods * settings.epochs_per_period
    seed = session.repeat_seed
    return train_from_initial(session, "train", dataset, states, epochs, clock, seed, callbacks)


def train_from_initial(
    session: Session,
    label: str,
    dataset: SwappableRows,
    states: Path,
    epochs: int,
    clock: WholeCheckpoints,
    seed: int,
    callbacks: tuple[TrainerCallback, ...] = (),
) -> Finetuned:
    """Train the initial adapter for some epochs, going on from the states saved last."""
    settings = session.config.training
    load_adapter(session.model, session.dir.initial)
    steps = optimizer_steps(len(dataset), epochs, settings)
    with session.screen.track(label, steps, "steps") as advance:
        return finetune(
            session.model,
            dataset,
            states,
            settings,
            seed=seed,
            epochs=epochs,
            callbacks=callbacks,
            clock=clock,
            advance=advance,
            describe=lambda place: session.pooled.describe(dataset.row(place)),
            world=session.world.at(label),
        )


def _publish_trained(
    session: Session, folder: Path, states: Path, finetuned: Finetuned, trained: NDArray[np.int64]
) -> None:
    """Publish an adapter with what training on the rows `trained` has cost; drop the trainer's states."""
    tokens = int(session.training_tokens.lengths[trained].sum())
    cost = Cost(len(trained), tokens, seconds=finetuned.seconds)
    publish_checkpoint(session, folder, finetuned.moments, cost)
    session.world.lead(lambda: shutil.rmtree(states))
