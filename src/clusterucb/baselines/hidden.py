"""Hidden states of the pool's and the target's rows, by which `rds` compares them."""

from __future__ import annotations

import time
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
    order: list[int] = []
    found: list[NDArray[np.float32]] = []
    for batch in plan(lengths, session.config.gradients.batch_tokens):
        numbers = batch.tolist()
        ids, rows = [target.ids[i] for i in numbers], [target.tokens[i] for i in numbers]
        found.append(forward(representations, session.model, rows, ids.__getitem__))
        order += numbers
    cost = Cost(tokens=int(lengths.sum()), seconds=time.monotonic() - started)
    return np.concatenate(found)[np.argsort(order)], cost


def represent_pool(session: Session, folder: Path, dim: int) -> FeatureStore:
    """Of all usable rows, (N, dim), in a store with which a killed command goes on; it has no losses."""
    pooled, total = session.pooled, len(session.pooled.rows)
    made_with = {**session.tokens_made_with, "model": fingerprint_base(session.model)}
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
