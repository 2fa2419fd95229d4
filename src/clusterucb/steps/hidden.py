"""What a forward pass tells of the pool's and the target's rows: as `rds` compares them, and as features.

Hidden states of one model share a large mean, which tells nothing of a row (Mu and Viswanath 2018, arXiv
1702.01417). So as features they are centred: the mean over the pool is taken from every row of pool and
target, and what is left has norm 1 again. And they are those at two thirds of the layers, where the pass
ends: the last layers turn to the next token.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel

from clusterucb.errors import InputError
from clusterucb.features.head import head_gradients, sides
from clusterucb.features.hidden import forward, hidden_size, representations
from clusterucb.features.influence import Subspace, Vectors, aimed
from clusterucb.features.store import FeatureStore
from clusterucb.gradients.batches import Batch, micro_batches
from clusterucb.gradients.featurizer import Found
from clusterucb.run.costs import Cost
from clusterucb.run.inputs import Pooled
from clusterucb.run.session import Session
from clusterucb.runtime.memory import Describe
from clusterucb.runtime.processes import World
from clusterucb.steps.growth import take_over


class Kind(NamedTuple):
    """What a forward pass tells of a micro-batch, (B, width), and its name."""

    compute: Callable[[PeftModel, Batch], NDArray[np.float32]]
    width: int
    name: str = "hidden states"


DEPTH = 2 / 3
"""Share of the layers that the pass of hidden states as features goes through."""
BLOCK = 1024
"""Rows that are centred, or compared, at once."""
MEAN = "mean.npy"
"""The mean of the pool's hidden states, beside the features, for targets to come."""


def take_hidden(session: Session, part: Path, made_with: Mapping[str, object]) -> None:
    """Write a feature of every usable row's hidden states, (N, H), at the model as it is now.

    For an index that grows they are of the rows that it did not have, without the mean that it had.

    Args:
        session: whose model has the weights of the checkpoint.
        part: the store's folder; a killed command goes on with what is there.
        made_with: fingerprints of all that they depend on.
    """
    every, kind, old = session.inputs.every, _features(session), session.grown_from
    as_they_are = part / "uncentred"
    if not session.world.has(part / "manifest.json"):
        if old is None:
            pool = represent_pool(session, every, as_they_are, made_with, kind)
            mean, title = mean_of(pool.features), f"centre {kind.name}"
        else:
            mean, title = np.load(old.features / MEAN), f"{kind.name} of the pool"

        def uncentred(rows: NDArray[np.int64]) -> NDArray[np.float16]:
            if old is None:
                return pool.features[rows[0] : rows[-1] + 1]
            return forward(kind.compute, session.model, *every.batch(rows), session.room).astype(np.float16)

        def compute(batches: Sequence[NDArray[np.int64]]) -> Iterator[Found]:
            for rows in batches:
                names = [every.describe(row) for row in rows.tolist()]
                found = centred(uncentred(rows), mean, names.__getitem__)
                yield found.astype(np.float16), np.full(len(rows), np.nan)

        if session.world.leads:
            np.save(part / MEAN, mean)
        with session.store(every, part, len(mean), made_with, title) as (writer, advance):
            rows = take_over(session, writer, 1)
            blocks = np.split(rows, range(BLOCK, len(rows), BLOCK))
            if old:
                blocks = [rows[batch] for batch in micro_batches(every.lengths[rows], session.batch_tokens)]
            writer.fill(blocks, compute, advance)
            cost = every.cost(writer.seconds, forwards=1).to_json() if old else pool.manifest["cost"]
            writer.finish({"cost": cost})
    if session.world.leads and as_they_are.exists():  # large, and of no use any more
        shutil.rmtree(as_they_are)


def hidden_directions(session: Session, features: Path) -> tuple[NDArray[np.float32] | Subspace, Cost]:
    """The target's directions, (S, H), beside these `features` of the model as it is now, and their cost.

    They are those of the aim. Where that is the mean over a subtask's rows, a feature's influence is its mean
    cosine to a subtask's rows, the largest over subtasks: an estimate of the influence by gradients.
    """
    codes, (found, cost) = session.inputs.targeted.codes, hidden_rows(session, features)
    return aimed(session.config.selection.aim, found, codes), cost


def hidden_rows(session: Session, features: Path) -> tuple[NDArray[np.float64], Cost]:
    """The same for each target row, (n, H)."""
    states, cost = represent_target(session, session.world.at("gradients"), _features(session))
    return centred(states, np.load(features / MEAN), session.inputs.targeted.ids.__getitem__), cost


def centred(
    rows: NDArray[np.floating], mean: NDArray[np.float64], describe: Describe = "row {}".format
) -> NDArray[np.float64]:
    """Rows (n, H) without the mean (H,), of norm 1.

    Raises:
        InputError: a row is the mean; `describe(i)` names it.
    """
    found: NDArray[np.float64] = rows.astype(np.float64) - mean
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    if not norms.all():
        raise InputError(
            f"{describe(int(norms.argmin()))}: its features are the mean of the pool's, expected rows "
            f"that differ; use --method dynamic with --features gradients, or a pool of more rows"
        )
    found /= norms
    return found


def mean_of(rows: Vectors) -> NDArray[np.float64]:
    """Over all rows, (H,)."""
    starts = range(0, len(rows), BLOCK)
    total = np.sum([rows[start : start + BLOCK].astype(np.float64).sum(0) for start in starts], axis=0)
    mean: NDArray[np.float64] = total / len(rows)
    return mean


def _features(session: Session) -> Kind:
    """Of the features that take no gradient."""
    return of_head(session) if session.method.features == "head" else of_states(session, DEPTH)


def of_states(session: Session, depth: float = 1.0) -> Kind:
    """Hidden states at a share of the layers."""
    return Kind(partial(representations, depth=depth), hidden_size(session.model))


def of_head(session: Session) -> Kind:
    """Gradients of a linear map before the vocabulary head."""
    dim, seed = session.config.gradients.dim, session.config.seed
    return Kind(partial(head_gradients, dim=dim, seed=seed), math.prod(sides(dim)), "gradients of the head")


def represent_target(session: Session, world: World, kind: Kind) -> tuple[NDArray[np.float32], Cost]:
    """Of each target row, (n, H), and their cost."""
    target, started = session.inputs.targeted, time.monotonic()

    def represent(batch: NDArray[np.int64]) -> NDArray[np.float32]:
        numbers = batch.tolist()
        ids, rows = [target.ids[i] for i in numbers], [target.tokens[i] for i in numbers]
        return forward(kind.compute, session.model, rows, ids.__getitem__, session.room)

    batches = micro_batches(target.lengths, session.batch_tokens)
    found = np.concatenate([states for _, states in world.share(batches, partial(map, represent), each=8)])
    cost = Cost(tokens=int(target.lengths.sum()), seconds=time.monotonic() - started)
    return found[np.argsort(np.concatenate(batches))], cost


def represent_pool(
    session: Session,
    pooled: Pooled,
    folder: Path,
    made_with: Mapping[str, object],
    kind: Kind,
) -> FeatureStore:
    """Of these rows, (N, width), in a store with which a killed command goes on; it has no losses."""
    title = f"{kind.name} of the pool"
    represent = partial(forward, kind.compute, session.model, room=session.room)

    def each(batches: Sequence[NDArray[np.int64]]) -> Iterator[Found]:
        for rows in batches:
            yield represent(*pooled.batch(rows)).astype(np.float16), np.full(len(rows), np.nan)

    with session.store(pooled, folder, kind.width, made_with, title, "float16") as (writer, advance):
        writer.fill(micro_batches(pooled.lengths, session.batch_tokens), each, advance)
        writer.finish({"cost": pooled.cost(writer.seconds, forwards=1).to_json()})
    return FeatureStore(folder)
