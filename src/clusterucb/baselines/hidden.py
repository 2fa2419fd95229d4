"""Hidden states of the pool's and the target's rows, by which `rds` compares them."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clusterucb.baselines.forward import forward, forward_cost, forward_pool
from clusterucb.baselines.rds import representations
from clusterucb.costs import Cost
from clusterucb.gradients.batches import plan
from clusterucb.gradients.store import FeatureStore, FeatureWriter
from clusterucb.session import Session
from clusterucb.training.model import fingerprint_base

__all__ = ["represent_pool", "represent_target"]


def represent_target(session: Session) -> tuple[NDArray[np.float32], Cost]:
    """Of each target row, (n, H), and their cost."""
    target = session.targeted
    started = time.monotonic()
    lengths = np.array([len(row.ids) for row in target.tokens], np.int64)

    def represent(batch: NDArray[np.int64]) -> NDArray[np.float32]:
        numbers = batch.tolist()
        ids, rows = [target.ids[i] for i in numbers], [target.tokens[i] for i in numbers]
        return forward(representations, session.model, rows, ids.__getitem__)

    batches = plan(lengths, session.config.gradients.batch_tokens)
    shared = session.world.at("select").share(batches, partial(map, represent), each=8)
    found = np.concatenate([states for _, states in shared])
    cost = Cost(tokens=int(lengths.sum()), seconds=time.monotonic() - started)
    return found[np.argsort(np.concatenate(batches))], cost


def represent_pool(session: Session, folder: Path, dim: int) -> FeatureStore:
    """Of all usable rows, (N, dim), in a store with which a killed command goes on; it has no losses."""
    pooled, total = session.pooled, len(session.pooled.rows)
    made_with = {**session.tokens_made_with, "model": fingerprint_base(session.model)}
    world = session.world.at("select")
    with (
        FeatureWriter(folder, total, dim, made_with, world=world) as writer,
        session.screen.track("hidden states of the pool", total, "rows") as advance,
    ):

        def write(rows: NDArray[np.int64]) -> int:
            found = forward_pool(representations, session.model, pooled, rows)
            writer.write(rows, found.astype(np.float16), np.full(len(rows), np.nan))
            return len(rows)

        batches = plan(pooled.lengths, session.config.gradients.batch_tokens)
        missing = [rows for rows in batches if not writer.done[rows].all()]
        advance(total - sum(map(len, missing)))
        for rows, count in world.share(missing, partial(map, write), each=16):
            advance(count, pooled.describe(int(rows[-1])))
        writer.finish({"cost": forward_cost(pooled, writer.seconds).to_json()})
    world.gather(None)
    return FeatureStore(folder)
