"""The two trainings of an adapter: the warmup, whose checkpoints gradients are taken at, and the real one.

Both begin at the initial adapter, and go on from the trainer's last saved state.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback

from clusterucb.config import Config
from clusterucb.errors import ConfigError
from clusterucb.gradients.adam import Moments
from clusterucb.run.costs import Cost
from clusterucb.run.index import needed
from clusterucb.run.inputs import Pooled
from clusterucb.run.methods import method_of
from clusterucb.run.rounds import read_round
from clusterucb.run.session import Session
from clusterucb.runtime.files import publish_folder, read_json, write_json
from clusterucb.selection.share import share
from clusterucb.steps.evaluate import watch
from clusterucb.steps.select import check_features, reselection
from clusterucb.training.adapter import adapter_weights, load_adapter, save_adapter
from clusterucb.training.callbacks import DynamicSelection, PartEnds, WholeCheckpoints
from clusterucb.training.data import SwappableRows
from clusterucb.training.finetune import finetune, optimizer_steps, training_clock
from clusterucb.training.moments import save_moments


def warmup(session: Session) -> None:
    """Train the adapter on random pool rows: where the first gradients are taken, after each epoch."""
    session.refuse_unless(session.method.takes_gradients, "warmup", "as it needs no gradient")
    states, epochs = session.dir.warmup.with_name("warmup.states"), session.method.checkpoints
    if _trained(session, session.dir.checkpoint(epochs), states):
        return
    session.decide()
    every, seed = session.inputs.every, session.config.seed
    rows = random_rows(len(every), warmup_rows(session.config, len(every)), seed)
    _check_schedule(session, len(rows))
    session.begin()
    clock = training_clock(states, session.world)
    keep = PartEnds(optimizer_steps(len(rows), 1, session.config.training), _Keep(session, rows, clock))
    dataset = SwappableRows(every.training, rows)
    train_from_initial(session, "warm up", every, dataset, states, epochs, clock, seed, (keep,))
    session.world.lead(lambda: shutil.rmtree(states))


def train(session: Session) -> None:
    """Train from the initial adapter on the selected rows; some methods select anew for every period."""
    first = read_round(needed(session.dir, session.dir.round(1), "select"))
    if session.method.reselects and not session.method.static:
        _train_and_reselect(session, first.rows)
    else:
        train_on(session, first.rows, session.dir.adapter, watched=True)


def _train_and_reselect(session: Session, first: NDArray[np.int64]) -> None:
    folder, states = session.dir.adapter, session.dir.training
    if _trained(session, folder, states):
        return
    check_features(session)
    settings, clock = session.config.training, training_clock(states, session.world)
    select = reselection(session, session.dir.path / "rounds", clock.pause)
    dynamic = DynamicSelection(
        session.inputs.training_tokens, first, select, epochs_per_period=settings.epochs_per_period
    )
    callbacks = (dynamic, watch(session, len(first), clock))
    moments = _train_periods(session, dynamic.dataset, states, clock, callbacks)
    rounds = [read_round(session.dir.round(n)).rows for n in session.method.rounds(settings.periods)]
    _publish_trained(session, folder, states, moments, clock.seconds, rounds)


def train_on(session: Session, rows: NDArray[np.int64], folder: Path, *, watched: bool = False) -> None:
    """Train on the same usable rows in every period: what a selection is compared with.

    Args:
        session: whose initial adapter, schedule and seed are used.
        rows: (L,), places among the usable rows.
        folder: becomes the adapter.
        watched: keep the loss on held-out rows after each period.
    """
    states = folder.with_name(f"{folder.name}.states")
    if _trained(session, folder, states):
        return
    dataset, clock = (
        SwappableRows(session.inputs.training_tokens, rows),
        training_clock(states, session.world),
    )
    callbacks = (watch(session, len(rows), clock),) if watched else ()
    moments = _train_periods(session, dataset, states, clock, callbacks)
    periods = [rows] * session.config.training.periods
    _publish_trained(session, folder, states, moments, clock.seconds, periods)


def random_rows(total: int, count: int, seed: int) -> NDArray[np.int64]:
    """`count` of `total` rows in random order; none comes again before all have come."""
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(total) for _ in range(-(-count // total))]
    return np.concatenate(rounds)[:count].astype(np.int64)


def warmup_rows(config: Config, total: int) -> int:
    """Rows of `total` in an epoch of the warmup: as many as its steps take, or LESS's share of them."""
    if method_of(config).reselects:
        return config.warmup.warmup_steps * config.training.batch_size
    return max(1, share(config.less.less_warmup, total))


def _check_schedule(session: Session, rows: int) -> None:
    """Refuse LESS's warmup of one step at a rising rate: its learning rate is 0, and weighs nothing."""
    if session.method.reselects:
        return
    settings = session.config.training
    total = optimizer_steps(rows, session.method.checkpoints, settings)
    if total == 1 and settings.lr_warmup and not session.config.less.less_weights:
        raise ConfigError(
            f"less_checkpoints 1 of {rows} rows is one optimizer step, whose learning rate is 0 under "
            f"lr_warmup {settings.lr_warmup}; raise --less-checkpoints or --less-warmup, or use --lr-warmup 0"
        )


def _train_periods(
    session: Session,
    dataset: SwappableRows,
    states: Path,
    clock: WholeCheckpoints,
    callbacks: tuple[TrainerCallback, ...],
) -> Moments:
    """All periods under one schedule."""
    settings = session.config.training
    epochs, seed = settings.periods * settings.epochs_per_period, session.repeat_seed
    pooled = session.inputs.pooled
    return train_from_initial(session, "train", pooled, dataset, states, epochs, clock, seed, callbacks)


def train_from_initial(
    session: Session,
    label: str,
    pooled: Pooled,
    dataset: SwappableRows,
    states: Path,
    epochs: int,
    clock: WholeCheckpoints,
    seed: int,
    callbacks: tuple[TrainerCallback, ...] = (),
) -> Moments:
    """Train the initial adapter for some epochs, going on from the states saved last."""
    settings = session.config.training
    load_adapter(session.model, session.dir.initial)
    with session.step(label, optimizer_steps(len(dataset), epochs, settings), "steps") as step:
        return finetune(
            session.model,
            dataset,
            states,
            settings,
            batch_tokens=session.batch_tokens,
            seed=seed,
            epochs=epochs,
            callbacks=callbacks,
            clock=clock,
            advance=step.advance,
            describe=lambda place: pooled.describe(dataset.row(place)),
            world=step.world,
            room=session.room,
        )


@dataclass(frozen=True)
class _Keep:
    """Publishes an epoch's end as a checkpoint, with what the epoch cost."""

    session: Session
    rows: NDArray[np.int64]
    clock: WholeCheckpoints

    def __call__(self, epoch: int, moments: Callable[[], Moments], rate: float) -> None:
        run, folder = self.session.dir, self.session.dir.checkpoint(epoch)
        if self.session.world.has(folder):
            return
        before = (read_json(run.checkpoint(n) / "checkpoint.json")["cost"] for n in range(1, epoch))
        seconds = max(0.0, self.clock.seconds - sum(cost["seconds"] for cost in before))
        cost = _cost(self.session.inputs.every, self.rows, seconds)
        publish_checkpoint(self.session, folder, moments(), cost, learning_rate=rate)


def publish_checkpoint(session: Session, folder: Path, moments: Moments, cost: Cost, **facts: object) -> None:
    """Publish the model's adapter as it is now, with Adam's moments, what it cost and more facts."""
    model, weights = session.model, adapter_weights(session.model)
    known = {"made_with": session.made_with, "cost": cost.to_json()}
    with publish_folder(folder, world=session.world) as part:
        if session.world.leads:
            save_adapter(model, part, weights)
            save_moments(moments, part / "moments.safetensors")
            write_json(part / "checkpoint.json", {**known, **facts})


def _publish_trained(
    session: Session,
    folder: Path,
    states: Path,
    moments: Moments,
    seconds: float,
    periods: Sequence[NDArray[np.int64]],
) -> None:
    """Publish an adapter with what training on these rows has cost; drop the trainer's states."""
    trained = np.tile(np.concatenate(periods), session.config.training.epochs_per_period)
    asked, cost = session.inputs.target_questions, _cost(session.inputs.pooled, trained, seconds)
    publish_checkpoint(session, folder, moments, cost, target_questions=asked)
    session.world.lead(lambda: shutil.rmtree(states))


def _cost(pooled: Pooled, rows: NDArray[np.int64], seconds: float) -> Cost:
    """Of training on these rows."""
    return Cost(len(rows), int(pooled.training.lengths[rows].sum()), seconds=seconds)


def _trained(session: Session, folder: Path, states: Path) -> bool:
    """Whether the adapter is there; the trainer's states that a kill may have left beside it are dropped."""

    def found() -> bool:
        if folder.exists() and states.exists():
            shutil.rmtree(states)
        return folder.exists()

    return session.world.lead(found)
