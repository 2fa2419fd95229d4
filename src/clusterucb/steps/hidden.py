"""Hidden states of the pool's and the target's rows: as `rds` compares them, and as features of all rows.

Hidden states of one model share a large mean, which tells nothing of a row (Mu and Viswanath 2018, arXiv
1702.01417). So as features they are centred: the mean over the pool is taken from every row of pool and
target, and what is left has norm 1 again. And they are those at two thirds of the layers, where the pass
ends: the last layers turn to the next token.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from clusterucb.errors import InputError
from clusterucb.features.hidden import forward, representations
from clusterucb.features.influence import Rows
from clusterucb.features.store import FeatureStore, FeatureWriter
from clusterucb.gradients.batches import Describe, plan
from clusterucb.run.costs import Cost
from clusterucb.run.inputs import forward_cost, forward_pool
from clusterucb.run.session import Session
from clusterucb.runtime.files import publish_folder
from clusterucb.runtime.processes import World

DEPTH = 2 / 3
"""Share of the layers that the features' pass goes through."""
BLOCK = 1024
"""Rows that are centred at once."""


def hidden_features(session: Session, folder: Path, made_with: Mapping[str, object]) -> None:
    """Publish features of all usable rows, (N, H), and the target's directions, (S, H), in `folder`.

    A direction is the mean over a subtask's rows. So a feature's influence is its mean cosine to a subtask's
    rows, the largest over subtasks: an estimate of the row's influence, where that is for gradients.

    Args:
        session: whose model has the weights of the checkpoint.
        folder: as the gradients' features have it; a killed command goes on.
        made_with: fingerprints of all that they depend on.
    """
    world = session.world.at("gradients")
    _ = session.pooled
    with publish_folder(folder, resume=True, world=world) as part:
        as_they_are = part / "uncentred"
        if not world.has(part / "manifest.json"):
            targets, cost = represent_target(session, world, DEPTH)
            pool = represent_pool(session, as_they_are, targets.shape[1], made_with, world, DEPTH)
            mean = _mean(pool.features)
            codes, found = session.targeted.codes, centred(targets, mean, session.targeted.ids.__getitem__)
            directions = np.stack([found[codes == code].mean(0) for code in range(codes.max() + 1)])
            if world.leads:
                save_file({"directions": directions.astype(np.float32)}, part / "directions.safetensors")
            cost += Cost.from_json(pool.manifest["cost"])
            _write_centred(session, pool, mean, part, made_with, cost, world)
        if world.leads and as_they_are.exists():  # large, and of no use any more
            shutil.rmtree(as_they_are)


def _write_centred(
    session: Session,
    pool: FeatureStore,
    mean: NDArray[np.float64],
    folder: Path,
    made_with: Mapping[str, object],
    cost: Cost,
    world: World,
) -> None:
    rows, dtype = len(pool), session.config.gradients.store_dtype
    with (
        FeatureWriter(folder, rows, len(mean), made_with, dtype, world) as writer,
        session.screen.track("centre the hidden states", rows, "rows") as advance,
    ):

        def write(start: int) -> int:
            block = np.arange(start, min(rows, start + BLOCK))
            names = [session.pooled.describe(row) for row in block.tolist()]
            found = centred(pool.features[start : start + BLOCK], mean, names.__getitem__)
            writer.write(block, found.astype(np.float16), np.full(len(block), np.nan))
            return len(block)

        for _, count in world.share(range(0, rows, BLOCK), partial(map, write), each=16):
            advance(count)
        writer.finish({"cost": cost.to_json()})


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
            f"{describe(int(norms.argmin()))}: its hidden states are the mean of the pool's, expected rows "
            f"that differ; use --features gradients, or a pool of more rows"
        )
    found /= norms
    return found


def _mean(rows: Rows) -> NDArray[np.float64]:
    """Over all rows, (H,)."""
    starts = range(0, len(rows), BLOCK)
    total = np.sum([rows[start : start + BLOCK].astype(np.float64).sum(0) for start in starts], axis=0)
    mean: NDArray[np.float64] = total / len(rows)
    return mean


def represent_target(session: Session, world: World, depth: float = 1.0) -> tuple[NDArray[np.float32], Cost]:
    """Of each target row, (n, H), and their cost."""
    target = session.targeted
    started = time.monotonic()
    lengths = np.array([len(row.ids) for row in target.tokens], np.int64)

    compute = partial(representations, depth=depth)

    def represent(batch: NDArray[np.int64]) -> NDArray[np.float32]:
        numbers = batch.tolist()
        ids, rows = [target.ids[i] for i in numbers], [target.tokens[i] for i in numbers]
        return forward(compute, session.model, rows, ids.__getitem__)

    batches = plan(lengths, session.config.gradients.batch_tokens)
    found = np.concatenate([states for _, states in world.share(batches, partial(map, represent), each=8)])
    cost = Cost(tokens=int(lengths.sum()), seconds=time.monotonic() - started)
    return found[np.argsort(np.concatenate(batches))], cost


def represent_pool(
    session: Session,
    folder: Path,
    dim: int,
    made_with: Mapping[str, object],
    world: World,
    depth: float = 1.0,
) -> FeatureStore:
    """Of all usable rows, (N, dim), in a store with which a killed command goes on; it has no losses."""
    pooled, total = session.pooled, len(session.pooled.rows)
    with (
        FeatureWriter(folder, total, dim, made_with, world=world) as writer,
        session.screen.track("hidden states of the pool", total, "rows") as advance,
    ):

        def write(rows: NDArray[np.int64]) -> int:
            found = forward_pool(partial(representations, depth=depth), session.model, pooled, rows)
            writer.write(rows, found.astype(np.float16), np.full(len(rows), np.nan))
            return len(rows)

        missing = writer.missing(plan(pooled.lengths, session.config.gradients.batch_tokens))
        advance(total - sum(map(len, missing)))
        for rows, count in world.share(missing, partial(map, write), each=16):
            advance(count, pooled.describe(int(rows[-1])))
        writer.finish({"cost": forward_cost(pooled, writer.seconds).to_json()})
    return FeatureStore(folder)
