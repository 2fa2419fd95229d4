"""The steps that LESS has of its own (Xia et al., ICML 2024, arXiv 2402.04333); the others are in steps.py.

A warmup of several epochs leaves a checkpoint after each. A row's score is the largest, over subtasks, of
sum_i w_i <its feature at checkpoint i, the subtask's direction there>. Without a bandit all rows' features
are stored at all checkpoints; with it, at the first, and those at the others are computed for drawn rows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from clusterucb.errors import ConfigError
from clusterucb.features.influence import EndToEnd, weighted_directions
from clusterucb.gradients.adam import Moments
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.run.artifacts import (
    already_trained,
    check_features,
    checkpoint_fingerprint,
    directions_at,
    need,
    publish_checkpoint,
    store,
)
from clusterucb.run.costs import Cost
from clusterucb.run.rounds import Round, read_round
from clusterucb.run.session import Session
from clusterucb.runtime.files import check_made_with, publish, publish_folder, read_json
from clusterucb.selection.known import Known
from clusterucb.selection.share import share
from clusterucb.steps import features as steps
from clusterucb.steps import select as selecting
from clusterucb.steps import train as training
from clusterucb.steps.reselection import Reselection
from clusterucb.training.adapter import read_adapter, set_adapter
from clusterucb.training.callbacks import EpochCheckpoints, WholeCheckpoints
from clusterucb.training.data import SwappableRows
from clusterucb.training.finetune import optimizer_steps, training_clock
from clusterucb.training.moments import load_moments


def warmup(session: Session) -> None:
    """Train on a random share of the pool: one schedule over all epochs, a checkpoint after each."""
    states, last = session.dir.path / "warmup.states", session.config.checkpoints[-1]
    if already_trained(session, session.dir.checkpoint(last), states):
        return
    settings, seed = session.config, session.config.seed
    total = len(session.training_tokens)
    rows = training.random_rows(total, max(1, share(settings.less.less_warmup, total)), seed)
    _check_schedule(session, len(rows))
    clock = training_clock(states, session.world)
    one_epoch = optimizer_steps(len(rows), 1, settings.training)
    epochs = EpochCheckpoints(one_epoch, _Keep(session, rows, clock))
    dataset = SwappableRows(session.training_tokens, rows)
    training.train_from_initial(session, "warm up", dataset, states, last, clock, seed, (epochs,))
    session.world.lead(lambda: shutil.rmtree(states))


def gradients(session: Session) -> None:
    """Features of all usable rows: at the first checkpoint, and without a bandit at all of them."""
    for number in session.config.checkpoints:
        if number == 1 or not session.config.budgeted:
            steps.gradients(session, number)


def select(session: Session) -> Round:
    """The one selection. With a single checkpoint all is stored already, and nothing is left to a bandit."""
    folder, numbers = session.dir.round(1), session.config.checkpoints
    if not session.world.has(folder):
        if session.config.budgeted and len(numbers) > 1:
            _select_fresh(session, folder)
        else:
            features = EndToEnd([store(session, n).features for n in numbers])
            directions = [directions_at(session, n) for n in numbers]
            selecting.rank(session, features, weighted_directions(directions, weights(session)))
    return read_round(folder)


def weights(session: Session) -> list[float]:
    """The weight of each checkpoint: those given, or its epoch's mean learning rate; their sum is 1."""
    given = session.config.less.less_weights or [
        float(read_json(_checkpoint(session, number) / "checkpoint.json")["learning_rate"])
        for number in session.config.checkpoints
    ]
    return [weight / sum(given) for weight in given]


@dataclass(frozen=True)
class _Keep:
    """Publishes an epoch's end as a checkpoint, with what the epoch cost."""

    session: Session
    rows: NDArray[np.int64]
    clock: WholeCheckpoints

    def __call__(self, epoch: int, moments: Moments, rate: float) -> None:
        run, folder = self.session.dir, self.session.dir.checkpoint(epoch)
        if self.session.world.has(folder):
            return
        before = (read_json(run.checkpoint(n) / "checkpoint.json")["cost"] for n in range(1, epoch))
        seconds = max(0.0, self.clock.seconds - sum(cost["seconds"] for cost in before))
        tokens = int(self.session.training_tokens.lengths[self.rows].sum())
        cost = Cost(len(self.rows), tokens, seconds=seconds)
        publish_checkpoint(self.session, folder, moments, cost, learning_rate=rate)


@dataclass(frozen=True)
class _Checkpoint:
    """A later checkpoint in memory, so that fresh gradients can be taken at each of them in turn.

    Attributes:
        folder: where it was read from.
        adapter: weights by canonical name, on the model's device.
        featurize: with its moments.
        fingerprint: of weights and moments.
    """

    folder: Path
    adapter: Mapping[str, torch.Tensor]
    featurize: Featurizer
    fingerprint: str

    @classmethod
    def read(cls, session: Session, number: int) -> _Checkpoint:
        folder = _checkpoint(session, number)
        moments = load_moments(folder / "moments.safetensors")
        featurize = Featurizer(session.model, session.projection, moments, session.config.gradients.formula)
        adapter = {name: tensor.to(featurize.device) for name, tensor in read_adapter(folder).items()}
        return cls(folder, adapter, featurize, checkpoint_fingerprint(folder, moments))

    def go(self) -> None:
        """Give the model this checkpoint's weights."""
        set_adapter(self.featurize.model, self.adapter, self.folder)


def _select_fresh(session: Session, folder: Path) -> None:
    """Let the bandit draw: features are stored at the first checkpoint, at the others made for its rows."""
    check_features(session)
    first, pooled, reselection = store(session), session.pooled, selecting.reselection(session, folder.parent)
    later = [_Checkpoint.read(session, number) for number in session.config.checkpoints[1:]]

    def features(rows: NDArray[np.int64]) -> NDArray[np.floating]:
        found = [np.concatenate([first.features[row : row + 1] for row in rows.tolist()])]
        for checkpoint in later:
            checkpoint.go()
            found.append(pooled.features(checkpoint.featurize, rows)[0])
        return np.concatenate(found, axis=1)

    with publish_folder(folder, resume=True, world=session.world) as part:
        directions, costs = zip(
            *(_directions(session, checkpoint, part) for checkpoint in later), strict=True
        )
        directions = (directions_at(session), *directions)
        made_at = [first.manifest["made_with"]["checkpoint"], *(at.fingerprint for at in later)]
        reselection.write(
            part,
            1,
            features,
            weighted_directions(directions, weights(session)),
            " ".join(made_at),
            sum(costs, Cost()),
            gradients=len(later),
            known=_known(session, reselection, directions),
        )


def _known(
    session: Session, reselection: Reselection, directions: Sequence[NDArray[np.float32]]
) -> Known | None:
    """What the first checkpoint's features tell, as if a row had them at every checkpoint."""
    shares = zip(weights(session), directions, strict=True)
    return reselection.known(np.sum([w * d.astype(np.float64) for w, d in shares], axis=0))


def _directions(session: Session, checkpoint: _Checkpoint, part: Path) -> tuple[NDArray[np.float32], Cost]:
    """The target's directions at a later checkpoint, (S, d), and their cost, both kept in `part`."""
    path = part / f"directions-{checkpoint.folder.name}.safetensors"
    world = session.world.at("select")
    if not world.has(path):
        checkpoint.go()
        batch_tokens = session.config.gradients.batch_tokens
        directions, cost = session.targeted.directions(
            session.model, session.projection, batch_tokens, session.screen, world
        )

        def keep() -> None:
            facts = {"weights": checkpoint.fingerprint, "cost": json.dumps(cost.to_json())}
            with publish(path) as unfinished:
                save_file({"directions": directions}, unfinished, metadata=facts)

        world.lead(keep)
    with safe_open(path, "numpy") as file:
        facts = file.metadata()
        check_made_with(facts, {"weights": checkpoint.fingerprint}, str(path))
        return file.get_tensor("directions"), Cost.from_json(json.loads(facts["cost"]))


def _checkpoint(session: Session, number: int) -> Path:
    return need(session, session.dir.checkpoint(number), "warmup")


def _check_schedule(session: Session, rows: int) -> None:
    """Refuse a warmup of one step at a rising rate: its learning rate is 0, and weighs nothing."""
    settings = session.config.training
    total = optimizer_steps(rows, session.config.checkpoints[-1], settings)
    if total == 1 and settings.lr_warmup and not session.config.less.less_weights:
        raise ConfigError(
            f"less_checkpoints 1 of {rows} rows is one optimizer step, whose learning rate is 0 under "
            f"lr_warmup {settings.lr_warmup}; raise --less-checkpoints or --less-warmup, or use --lr-warmup 0"
        )
