"""The two trainings of an adapter: the warmup, whose checkpoints gradients are taken at, and the real one.

Both begin at the initial adapter, and go on from the trainer's last saved state.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
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
    run, epochs = session.dir, session.method.checkpoints
    if not epochs:  # words are the same at any
        session.begin()
        return
    states = run.warmup.with_name("warmup.states")
    if _trained(session, run.checkpoint(epochs), states):
        return
    session.decide()
    every, seed = session.inputs.every, session.config.seed
    rows = random_rows(len(every), warmup_rows(session.config, len(every)), seed)
    _check_schedule(session, len(rows))
    session.begin()
    clock = training_clock(states, session.world)

    def keep(epoch: int, moments: Callable[[], Moments], rate: float) -> None:
        folder = run.checkpoint(epoch)
        if session.world.has(folder):
            return
        before = (read_json(run.checkpoint(n) / "checkpoint.json")["cost"] for n in range(1, epoch))
        seconds = max(0.0, clock.seconds - sum(cost["seconds"] for cost in before))
        _publish_checkpoint(session, folder, moments(), _cost(every, rows, seconds), learning_rate=rate)

    ends = PartEnds(optimizer_steps(len(rows), 1, session.config.training), keep)
    dataset = SwappableRows(every.training, rows)
    _train_from_initial(session, "warm up", every, dataset, states, epochs, clock, seed, (ends,))
    session.world.lead(lambda: shutil.rmtree(states))


def train(session: Session) -> None:
    """Train from the initial adapter on the selected rows; some methods select anew for every period."""
    first = read_round(needed(session.dir, session.dir.round(1), "select")).rows
    folder, states, settings = session.dir.adapter, session.dir.training, session.config.training
    left = [_trained(session, folder, each) for each in (states, _states(folder))]  # of either training
    if any(left):
        return None
    if session.method.once:
        return train_on(session, first, folder, watched=True)
    check_features(session)
    clock = training_clock(states, session.world)
    select = reselection(session, session.dir.path / "rounds", clock.pause)
    dynamic = DynamicSelection(
        session.inputs.training_tokens, first, select, epochs_per_period=settings.epochs_per_period
    )
    callbacks = (dynamic, watch(session, len(first), clock))
    numbers = session.method.rounds(settings.periods)
    trained = (read_round(session.dir.round(number)).rows for number in numbers)  # once all are there
    return _train_periods(session, folder, dynamic.dataset, states, clock, callbacks, trained)


def train_on(session: Session, rows: NDArray[np.int64], folder: Path, *, watched: bool = False) -> None:
    """Train on the same usable rows (L,) in every period; `folder` becomes the adapter.

    If `watched`, the loss on held-out rows is kept after each period.
    """
    states = _states(folder)
    if _trained(session, folder, states):
        return
    dataset = SwappableRows(session.inputs.training_tokens, rows)
    clock = training_clock(states, session.world)
    callbacks = (watch(session, len(rows), clock),) if watched else ()
    periods = [rows] * session.config.training.periods
    _train_periods(session, folder, dataset, states, clock, callbacks, periods)


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
    folder: Path,
    dataset: SwappableRows,
    states: Path,
    clock: WholeCheckpoints,
    callbacks: tuple[TrainerCallback, ...],
    periods: Iterable[NDArray[np.int64]],
) -> None:
    """Train all periods under one schedule, and publish the adapter; `periods` are then the rows of each."""
    pooled, settings, seed = session.inputs.pooled, session.config.training, session.repeat_seed
    epochs = settings.periods * settings.epochs_per_period
    moments = _train_from_initial(session, "train", pooled, dataset, states, epochs, clock, seed, callbacks)
    trained = np.tile(np.concatenate([*periods]), settings.epochs_per_period)
    asked, cost = session.inputs.target_questions, _cost(pooled, trained, clock.seconds)
    _publish_checkpoint(session, folder, moments, cost, target_questions=asked)
    session.world.lead(lambda: shutil.rmtree(states))


def _train_from_initial(
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


def _publish_checkpoint(
    session: Session, folder: Path, moments: Moments, cost: Cost, **facts: object
) -> None:
    """Publish the model's adapter as it is now, with Adam's moments, what it cost and more facts."""
    model, weights = session.model, adapter_weights(session.model)
    known = {"made_with": session.made_with, "cost": cost.to_json()}
    with publish_folder(folder, world=session.world) as part:
        if session.world.leads:
            save_adapter(model, part, weights)
            save_moments(moments, part / "moments.safetensors")
            write_json(part / "checkpoint.json", {**known, **facts})


def _cost(pooled: Pooled, rows: NDArray[np.int64], seconds: float) -> Cost:
    """Of training on these rows."""
    return Cost(len(rows), int(pooled.training.lengths[rows].sum()), seconds=seconds)


def _states(folder: Path) -> Path:
    """Those of the trainer, of an adapter that is trained on one selection."""
    return folder.with_name(f"{folder.name}.states")


def _trained(session: Session, folder: Path, states: Path) -> bool:
    """Whether the adapter is there; the trainer's states that a kill may have left beside it are dropped."""

    def found() -> bool:
        if folder.exists() and states.exists():
            shutil.rmtree(states)
        return folder.exists()

    return session.world.lead(found)
