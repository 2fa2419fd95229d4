"""What LESS has of its own (Xia et al., ICML 2024, arXiv 2402.04333): checkpoints, each with a weight.

A row's score is the largest, over subtasks, of sum_i w_i <its feature at checkpoint i, the subtask's
direction there>. With a bandit all rows' features are stored at the first checkpoint, and those at the others
are computed for drawn rows.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb.features.influence import rows_of, weighted_directions
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.run.costs import Cost
from clusterucb.run.index import Checkpoint, needed
from clusterucb.run.session import Session
from clusterucb.runtime.files import read_json
from clusterucb.steps.features import directions
from clusterucb.steps.reselection import Fresh
from clusterucb.training.adapter import read_adapter, set_adapter


def weights(session: Session) -> list[float]:
    """The weight of each checkpoint: those given, or its epoch's mean learning rate; their sum is 1."""
    if session.method.checkpoints == 1:  # whose rate may be 0: that of a rising schedule's first step
        return [1.0]
    given = session.config.less.less_weights or [
        read_json(folder / "checkpoint.json").get("learning_rate", 1.0)
        for number in session.method.numbers
        for folder in [needed(session.dir, session.dir.checkpoint(number), "warmup")]
    ]
    return [weight / sum(given) for weight in given]


def fresh_beside_stored(session: Session) -> tuple[Fresh, NDArray[np.float64]]:
    """Features at all checkpoints laid end to end: the first's are stored, the others' are computed.

    Also the directions, (S, d), by which the first checkpoint's features tell of a row before it is drawn, as
    if it had them at every checkpoint.
    """
    first, pooled, shares = session.index.features(), session.inputs.pooled, weights(session)
    aims, costs = zip(*(directions(session, number) for number in session.method.numbers), strict=True)
    later = [_live(session, number) for number in session.method.numbers[1:]]

    def features(rows: NDArray[np.int64]) -> NDArray[np.floating]:
        found = [rows_of(first, rows)]
        for at, adapter, featurize in later:
            set_adapter(featurize.model, adapter, at.folder)
            found.append(pooled.features(featurize, rows))
        return np.concatenate(found, axis=1)

    fresh = Fresh(
        features,
        weighted_directions(aims, shares),
        " ".join([session.index.checkpoint().fingerprint, *(at.fingerprint for at, _, _ in later)]),
        sum(costs[1:], Cost()),
        gradients=len(later),
    )
    combined = [share * aim.astype(np.float64) for share, aim in zip(shares, aims, strict=True)]
    return fresh, np.sum(combined, axis=0)


def _live(session: Session, number: int) -> tuple[Checkpoint, dict[str, torch.Tensor], Featurizer]:
    """A checkpoint in memory: where it is, its weights on the model's device, what takes gradients there."""
    at = session.index.checkpoint(number)
    featurize = session.featurizer(at.moments)
    adapter = {name: tensor.to(featurize.device) for name, tensor in read_adapter(at.folder).items()}
    return at, adapter, featurize
