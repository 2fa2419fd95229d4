"""Features of all rows at the warmup checkpoint, which the clusters are made of, and at two later ones.

One run serves all targets, each a subtask of its own: warmup, gradients, clusters and period 1 are the
package's steps. Training then begins at the initial adapter. At the start of period 2 and of the last one the
features of all rows are taken again, with the directions of every target, and the top share of the rows by
the largest influence on any target is trained on until the next such period.

    RUN/features             at the warmup checkpoint: what the bandit knows without a new gradient
    RUN/hidden               there, too: hidden states of one forward pass instead of gradients
    RUN/fresh/2, RUN/fresh/4 at the start of a period: what scoring every row would tell
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from clusterucb.features.influence import stored_influence
from clusterucb.features.store import FeatureStore
from clusterucb.gradients.adam import Moments
from clusterucb.gradients.per_sample import trainable_parameters
from clusterucb.run.rounds import read_round
from clusterucb.run.session import Session
from clusterucb.runtime.files import made
from clusterucb.selection.share import share, top
from clusterucb.steps import features, select, train
from clusterucb.steps.hidden import hidden_directions, take_hidden
from clusterucb.training.adapter import fingerprint_tensors, load_adapter
from clusterucb.training.callbacks import DynamicSelection
from clusterucb.training.finetune import finetune, optimizer_steps

DIRECTIONS = "directions.safetensors"
"""The target's, beside features and hidden states that are no artifact of a run."""

Stored = tuple[FeatureStore, NDArray[np.float32]]
"""A finished store and the directions of its subtasks, (S, d)."""


def fresh_periods(session: Session) -> tuple[int, int]:
    """The periods at whose start all features are taken again."""
    return 2, session.config.training.periods


def fresh_folder(session: Session, period: int) -> Path:
    """Where the features at the start of `period` are."""
    return session.dir.path / "fresh" / str(period)


def hidden_folder(session: Session) -> Path:
    """Where the hidden states at the warmup checkpoint are."""
    return session.dir.path / "hidden"


def take_features(session: Session) -> None:
    """All four stores, those that are there left as they are; killed at any moment, it goes on."""
    with session.owned():
        session.check_inputs()
        for step in (train.warmup, features.gradients, features.cluster, select.select):
            step(session)
        _take_hidden(session)
        if not session.world.has(fresh_folder(session, fresh_periods(session)[-1])):
            _train(session)


def read_warmup(session: Session) -> Stored:
    """The features at the warmup checkpoint."""
    return FeatureStore(session.dir.features), features.read_directions(session.dir.directions_at(1))[0]


def read_features(folder: Path) -> Stored:
    """Hidden states, or features at a later checkpoint."""
    return FeatureStore(folder), features.read_directions(folder / DIRECTIONS)[0]


def _take_hidden(session: Session) -> None:
    def take(part: Path) -> None:
        load_adapter(session.model, session.dir.warmup)
        made_with = {**session.made_with, "features": "hidden"}
        take_hidden(session, part, made_with)
        found = hidden_directions(session, part)
        if session.world.leads:
            features.write_directions(part / DIRECTIONS, found, made_with)

    made(hidden_folder(session), take, Path, resume=True, world=session.world)


def _train(session: Session) -> None:
    """Train through all periods, with the features taken on the way."""
    settings = session.config.training
    dynamic = DynamicSelection(
        session.inputs.training_tokens,
        read_round(session.dir.round(1)).rows,
        _selection(session),
        epochs_per_period=settings.epochs_per_period,
    )
    load_adapter(session.model, session.dir.initial)
    epochs = settings.periods * settings.epochs_per_period
    with session.step("train", optimizer_steps(len(dynamic.dataset), epochs, settings), "steps") as step:
        finetune(
            session.model,
            dynamic.dataset,
            session.dir.training,
            settings,
            seed=session.repeat_seed,
            epochs=epochs,
            callbacks=(dynamic,),
            advance=step.advance,
            world=step.world,
        )


def _selection(session: Session) -> Callable[[int, nn.Module, Callable[[], Moments]], NDArray[np.int64]]:
    """The rows of a period: the top share by the features that were taken last."""

    def select(period: int, model: nn.Module, moments: Callable[[], Moments]) -> NDArray[np.int64]:
        latest = max(fresh for fresh in fresh_periods(session) if fresh <= period)

        def take(part: Path) -> None:
            made_with = {**session.made_with, "weights": fingerprint_tensors(trainable_parameters(model))}
            found = session.directions(session.world)
            if session.world.leads:
                features.write_directions(part / DIRECTIONS, found, made_with)
            features.take_gradients(session, part, moments(), made_with, f"all gradients, period {latest}")

        folder = fresh_folder(session, latest)
        store, directions = made(folder, take, read_features, resume=True, world=session.world)
        count = share(session.config.selection.top_p, len(store))
        return np.sort(top(stored_influence(store.features, directions), count))

    return select
