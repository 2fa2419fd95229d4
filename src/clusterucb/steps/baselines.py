"""A baseline's selection as round 1 of a run: the best top_p of all usable rows, by scores of its own.

Each method is a function from the session, and the folder in which a killed command finds what it had, to
a selection and its cost. None computes a gradient.

The baseline `loss`: the rows that the model finds hardest, or easiest, to predict.

Perplexity is exp(loss), so both give the same order.

The baseline `random`: rows drawn uniformly.

The baseline `rds`: rows whose hidden states are like those of the target, by the cosine.

RDS+ (Ivison et al. 2025, arXiv 2503.01807); what stands for a row is in forward/representations.py.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clusterucb.data.rows import Row
from clusterucb.errors import ConfigError
from clusterucb.features.scores import ScoreLog
from clusterucb.gradients.batches import plan
from clusterucb.gradients.per_sample import row_losses
from clusterucb.run.costs import Cost
from clusterucb.run.inputs import forward_cost, forward_pool
from clusterucb.run.rounds import Round, read_round, write_round
from clusterucb.run.session import Session
from clusterucb.runtime.files import publish_folder
from clusterucb.selection.bandit import Selection
from clusterucb.selection.round_robin import round_robin
from clusterucb.selection.selector import FullScoring
from clusterucb.selection.share import share
from clusterucb.steps.bm25 import bm25_scores
from clusterucb.steps.hidden import represent_pool, represent_target
from clusterucb.training.adapter import fingerprint_base, load_adapter

BLOCK = 1024
"""Rows whose hidden states are in memory at once."""


def select_baseline(session: Session) -> Round:
    """Round 1 by the method that the settings name, computed or read."""
    folder, world = session.dir.round(1), session.world.at("select")
    if not world.has(folder):
        session.check_inputs()
        load_adapter(session.model, session.dir.initial)  # from here on the settings are the run's
        _ = session.pooled
        with publish_folder(folder, resume=True, world=world) as part:
            selection, cost = BASELINES[session.config.method](session, part)
            if world.leads:
                summary = write_round(part, 1, selection, [], session.pool, session.pooled.rows, cost)
        if world.leads:
            session.screen.tell("selected", **summary)
    if world.leads and (hidden := folder / "hidden").exists():  # large, and of no use any more
        shutil.rmtree(hidden)
    return read_round(folder)


def _random(session: Session, _part: Path) -> tuple[Selection, Cost]:
    rows = len(session.pooled.rows)
    started = time.monotonic()
    selection = _top(session, random_scores(rows, session.repeat_seed))
    return selection, Cost(seconds=time.monotonic() - started)


def _bm25(session: Session, _part: Path) -> tuple[Selection, Cost]:
    """Documents are the rows' texts, queries the target rows': prompt and answer, as a gradient sees both.

    Of several processes rank 0 counts words alone.
    """
    _ = session.pooled
    return session.world.at("select").lead(lambda: _counted(session))


def _counted(session: Session) -> tuple[Selection, Cost]:
    rows = session.pooled.rows
    started = time.monotonic()
    with session.screen.track("words of the pool", len(rows), "rows") as advance:
        documents = (_text(session.pool[row]) for row in rows.tolist())
        queries = [_text(row) for row in session.target]
        selection = _top(session, bm25_scores(documents, queries, session.target.codes, advance))
    return selection, Cost(rows=len(rows), seconds=time.monotonic() - started)


def _loss(session: Session, part: Path) -> tuple[Selection, Cost]:
    model, pooled, world = session.model, session.pooled, session.world.at("select")
    losses = np.empty(len(pooled.rows))
    with (
        ScoreLog(part / "scores.jsonl", fingerprint_base(model), world) as log,
        session.screen.track("losses of the pool", len(losses), "rows") as advance,
    ):
        batches = plan(pooled.lengths, session.config.gradients.batch_tokens)
        compute = partial(forward_pool, row_losses, model, pooled)
        for rows, found in log.each(np.arange(len(losses)), batches, compute):
            losses[rows] = found
            advance(len(rows), pooled.describe(int(rows[-1])))
        cost = forward_cost(pooled, log.seconds)
    return _top(session, loss_scores(losses, session.config.baselines.perplexity)), cost


def _rds(session: Session, part: Path) -> tuple[Selection, Cost]:
    """A kept row's score is its similarity to the target row that took it; all rows', to the nearest one."""
    world = session.world.at("select")
    targets, target_cost = represent_target(session, world)
    made_with = {**session.tokens_made_with, "model": fingerprint_base(session.model)}
    store = represent_pool(session, part / "hidden", targets.shape[1], made_with, world)
    nearest = np.empty(len(store))
    started = time.monotonic()
    with session.screen.track("similarities", len(store), "rows") as advance:

        def blocks() -> Iterator[NDArray[np.float32]]:
            for start in range(0, len(store), BLOCK):
                block = cosines(store.features[start : start + BLOCK], targets)  # (n, b)
                nearest[start : start + BLOCK] = block.max(0)
                yield block
                advance(block.shape[1])

        count = share(session.config.selection.top_p, len(store))
        taken, similarities = round_robin(blocks(), count)
    cost = target_cost + Cost.from_json(store.manifest["cost"]) + Cost(seconds=time.monotonic() - started)
    in_pool_order = np.argsort(taken)
    rows, scores = taken[in_pool_order], similarities[in_pool_order]
    return replace(_top(session, nearest), rows=rows, scores=scores), cost


BASELINES: dict[str, Callable[[Session, Path], tuple[Selection, Cost]]] = {
    "random": _random,
    "bm25": _bm25,
    "rds": _rds,
    "loss": _loss,
}
"""The methods by name."""


def _top(session: Session, scores: NDArray[np.float64]) -> Selection:
    """The best rows by scores of all; all are in cluster 0."""
    return FullScoring(np.zeros(len(scores), np.int64), session.config.selection.top_p)(
        lambda rows: scores[rows]
    )


def _text(row: Row) -> str:
    return "\n".join(message.content for message in row.messages)


def _refuse_baseline(session: Session, step: str) -> None:
    if session.config.method in BASELINES:
        raise ConfigError(
            f"method {session.config.method} has no step {step}, as it needs no gradient: "
            f"run `clusterucb select --out {session.dir.path}`"
        )


Perplexity = Literal["highest", "lowest"]


def loss_scores(losses: NDArray[np.float64], perplexity: Perplexity) -> NDArray[np.float64]:
    """Scores (N,) by which the largest are selected: the losses (N,), negative for `lowest`."""
    return losses if perplexity == "highest" else -losses


def random_scores(rows: int, seed: int) -> NDArray[np.float64]:
    """One number a row, uniform in [0, 1), (N,): its largest are a uniform draw without replacement."""
    return np.random.default_rng(seed).random(rows)


def cosines(rows: NDArray[Any], targets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Similarities (n, b) of n target rows (n, H) to b rows (b, H), both of norm 1.

    Computed in float64 and rounded, so that a row's do not depend on the rows beside it.
    """
    products: NDArray[np.float32] = (targets.astype(np.float64) @ rows.T.astype(np.float64)).astype(
        np.float32
    )
    return products
