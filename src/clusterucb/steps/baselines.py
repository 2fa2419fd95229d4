"""Selections to compare with, by scores that take no gradient: random, BM25, hidden states, the head, losses.

Each method is a function from the session, and the folder in which a killed command finds what it had, to
a selection and its cost.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.data.rows import Row
from clusterucb.features.hidden import forward
from clusterucb.features.influence import influence, means, similarities
from clusterucb.features.scores import ScoreLog
from clusterucb.features.store import FeatureStore
from clusterucb.gradients.batches import micro_batches
from clusterucb.gradients.per_sample import row_losses
from clusterucb.run.costs import Cost
from clusterucb.run.rounds import Round, read_round
from clusterucb.run.session import Session, Step
from clusterucb.runtime.files import made
from clusterucb.selection.bandit import Selection
from clusterucb.selection.round_robin import in_turns
from clusterucb.selection.selector import FullScoring
from clusterucb.steps.bm25 import bm25_scores
from clusterucb.steps.hidden import (
    BLOCK,
    Kind,
    centred,
    mean_of,
    of_head,
    of_states,
    represent_pool,
    represent_target,
)
from clusterucb.steps.reselection import keep_round
from clusterucb.training.adapter import fingerprint_base, load_adapter


def select_by_scores(session: Session) -> Round:
    """Round 1 by the method that the settings name."""
    folder = session.dir.round(1)

    def rank(part: Path) -> None:
        session.check_inputs()
        session.begin()
        load_adapter(session.model, session.dir.initial)
        selection, cost = SCORES[session.method.name](session, part)
        keep_round(part, 1, selection, cost, session.inputs.pooled, session.screen, session.world)

    found = made(folder, rank, read_round, resume=True, world=session.world.at("select"))
    if session.world.leads and (hidden := folder / "hidden").exists():  # large, and of no use any more
        shutil.rmtree(hidden)
    return found


def _random(session: Session, _part: Path) -> tuple[Selection, Cost]:
    """One number a row, uniform in [0, 1): its largest are a uniform draw without replacement."""
    started = time.monotonic()
    rng = np.random.default_rng(session.repeat_seed)
    selection = _top(session, rng.random(len(session.inputs.pooled)))
    return selection, Cost(seconds=time.monotonic() - started)


def _bm25(session: Session, _part: Path) -> tuple[Selection, Cost]:
    """Documents are the rows' texts, queries the target rows': prompt and answer, as a gradient sees both.

    Of several processes rank 0 counts words alone.
    """
    pooled, target = session.inputs.pooled, session.inputs.target

    def counted() -> tuple[Selection, Cost]:
        with session.step("select", len(pooled), "rows", title="words of the pool") as step:
            documents = (_text(pooled.pool[row]) for row in pooled.rows.tolist())
            queries = [_text(row) for row in target]
            selection = _top(session, bm25_scores(documents, queries, target.codes, step.advance))
            return selection, step.cost(len(pooled))

    return session.world.at("select").lead(counted)


def _loss(session: Session, part: Path) -> tuple[Selection, Cost]:
    """The rows that the model finds hardest, or easiest, to predict, as by perplexity, exp(loss)."""
    model, pooled, world = session.model, session.inputs.pooled, session.world.at("select")
    losses = np.empty(len(pooled))
    with (
        ScoreLog(part / "scores.jsonl", fingerprint_base(model), world) as log,
        session.screen.track("losses of the pool", len(losses), "rows") as advance,
    ):

        def compute(rows: NDArray[np.int64]) -> NDArray[np.float64]:
            return forward(row_losses, model, *pooled.batch(rows), session.room)

        batches = micro_batches(pooled.lengths, session.batch_tokens)
        for rows, found in log.each(np.arange(len(losses)), batches, compute):
            losses[rows] = found
            advance(len(rows), pooled.describe(int(rows[-1])))
        cost = pooled.cost(log.seconds, forwards=1)
    sign = 1 if session.config.baselines.perplexity == "highest" else -1
    return _top(session, sign * losses), cost


def _rds(session: Session, part: Path) -> tuple[Selection, Cost]:
    """RDS+ (Ivison et al. 2025, arXiv 2503.01807): target rows take their most similar rows in turn.

    A kept row's score is its similarity to the target row that took it; all rows', to the nearest one.
    """
    store, targets, cost = _represented(session, part, of_states(session))
    nearest: list[NDArray[np.float32]] = []
    with session.step("select", len(store), "rows", title="similarities") as step:

        def similar() -> Iterator[NDArray[np.float32]]:
            for _, block in _blocks(store, step):
                found = similarities(block, targets)  # (n, b)
                nearest.append(found.max(0))
                yield found

        rows, scores, _ = in_turns(similar(), session.budget.keep(len(store)))
        cost += step.cost()
    return replace(_top(session, np.concatenate(nearest)), rows=rows, scores=scores), cost


def _head(session: Session, part: Path) -> tuple[Selection, Cost]:
    """Influence as it would be if a linear map before the vocabulary head were all that is trained.

    Gradients are centred, as features of theirs are; a row's score is its mean cosine to the rows of a
    subtask, the largest over subtasks.
    """
    pooled, target = session.inputs.pooled, session.inputs.targeted
    store, gradients, cost = _represented(session, part, of_head(session))
    mean = mean_of(store.features)
    aim = means(centred(gradients, mean, target.ids.__getitem__), target.codes)
    with session.step("select", len(store), "rows", title="similarities") as step:

        def score(start: int, block: NDArray[Any]) -> NDArray[np.float64]:
            return influence(centred(block, mean, lambda i: pooled.describe(start + i)), aim)

        scores = np.concatenate([score(*found) for found in _blocks(store, step)])
        return _top(session, scores), cost + step.cost()


def _represented(session: Session, part: Path, kind: Kind) -> tuple[FeatureStore, NDArray[np.float32], Cost]:
    """What a forward pass tells of the pool's rows, (N, H), and of the target's, (n, H), and its cost."""
    targets, cost = represent_target(session, session.world.at("select"), kind)
    made_with = {**session.inputs.tokens_made_with, "model": fingerprint_base(session.model)}
    store = represent_pool(session, session.inputs.pooled, part / "hidden", made_with, kind)
    return store, targets, cost + Cost.from_json(store.manifest["cost"])


def _blocks(store: FeatureStore, step: Step) -> Iterator[tuple[int, NDArray[Any]]]:
    """The first row of each block, and what is stored of its rows, (b, H)."""
    for start in range(0, len(store), BLOCK):
        block = store.features[start : start + BLOCK]
        yield start, block
        step.advance(len(block))


SCORES: dict[str, Callable[[Session, Path], tuple[Selection, Cost]]] = {
    "random": _random,
    "bm25": _bm25,
    "rds": _rds,
    "head": _head,
    "loss": _loss,
}
"""The methods by name."""


def _top(session: Session, scores: NDArray[np.float64]) -> Selection:
    """The best rows by scores of all; all are in cluster 0."""
    keep = FullScoring(np.zeros(len(scores), np.int64), session.budget.top_p)
    return keep(lambda rows: scores[rows])


def _text(row: Row) -> str:
    return "\n".join(message.content for message in row.messages)
