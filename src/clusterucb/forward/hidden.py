"""Hidden states of the pool's and the target's rows: as `rds` compares them, and as features of all rows.

Hidden states of one model share a large mean, which tells nothing of a row (Mu and Viswanath 2018, arXiv
1702.01417). So as features they are centred: the mean over the pool is taken from every row of pool and
target, and what is left has norm 1 again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from clusterucb.costs import Cost
from clusterucb.errors import InputError
from clusterucb.forward.passes import forward, forward_cost, forward_pool
from clusterucb.forward.representations import representations
from clusterucb.gradients.batches import Describe, plan
from clusterucb.gradients.influence import Rows
from clusterucb.gradients.store import FeatureStore, FeatureWriter
from clusterucb.rundir import publish_folder
from clusterucb.session import Session

__all__ = ["centred", "hidden_features", "represent_pool", "represent_target"]

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
    with publish_folder(folder, resume=True) as part:
        as_they_are = part / "uncentred"
        if not (part / "manifest.json").exists():
            targets, cost = represent_target(session)
            pool = represent_pool(session, as_they_are, targets.shape[1], made_with)
            mean = _mean(pool.features)
            codes, found = session.targeted.codes, centred(targets, mean, session.targeted.ids.__getitem__)
            directions = np.stack([found[codes == code].mean(0) for code in range(codes.max() + 1)])
            save_file({"directions": directions.astype(np.float32)}, part / "directions.safetensors")
            cost += Cost.from_json(pool.manifest["cost"])
            _write_centred(session, pool, mean, part, made_with, cost)
        if as_they_are.exists():  # large, and of no use any more
            shutil.rmtree(as_they_are)


def _write_centred(
    session: Session,
    pool: FeatureStore,
    mean: NDArray[np.float64],
    folder: Path,
    made_with: Mapping[str, object],
    cost: Cost,
) -> None:
    rows, dtype = len(pool), session.config.gradients.store_dtype
    with (
        FeatureWriter(folder, rows, len(mean), made_with, dtype) as writer,
        session.screen.track("centre the hidden states", rows, "rows") as advance,
    ):
        for start in range(0, rows, BLOCK):
            block = np.arange(start, min(rows, start + BLOCK))
            names = [session.pooled.describe(row) for row in block.tolist()]
            found = centred(pool.features[start : start + BLOCK], mean, names.__getitem__)
            writer.write(block, found.astype(np.float16), np.full(len(block), np.nan))
            advance(len(block))
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


def represent_target(session: Session) -> tuple[NDArray[np.float32], Cost]:
    """Of each target row, (n, H), and their cost."""
    target = session.targeted
    started = time.monotonic()
    lengths = np.array([len(row.ids) for row in target.tokens], np.int64)
    order: list[int] = []
    found: list[NDArray[np.float32]] = []
    for batch in plan(lengths, session.config.gradients.batch_tokens):
        numbers = batch.tolist()
        ids, rows = [target.ids[i] for i in numbers], [target.tokens[i] for i in numbers]
        found.append(forward(representations, session.model, rows, ids.__getitem__))
        order += numbers
    cost = Cost(tokens=int(lengths.sum()), seconds=time.monotonic() - started)
    return np.concatenate(found)[np.argsort(order)], cost


def represent_pool(session: Session, folder: Path, dim: int, made_with: Mapping[str, object]) -> FeatureStore:
    """Of all usable rows, (N, dim), in a store with which a killed command goes on; it has no losses."""
    pooled, total = session.pooled, len(session.pooled.rows)
    with (
        FeatureWriter(folder, total, dim, made_with) as writer,
        session.screen.track("hidden states of the pool", total, "rows") as advance,
    ):
        for rows in plan(pooled.lengths, session.config.gradients.batch_tokens):
            if not writer.done[rows].all():
                found = forward_pool(representations, session.model, pooled, rows)
                writer.write(rows, found.astype(np.float16), np.full(len(rows), np.nan))
            advance(len(rows), pooled.describe(int(rows[-1])))
        writer.finish({"cost": forward_cost(pooled, writer.seconds).to_json()})
    return FeatureStore(folder)
