"""What a run reads: the pool's usable rows and the target's as tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from torch import nn

from clusterucb.data.chat import Encoded
from clusterucb.data.pool import Pool
from clusterucb.features.hidden import Compute, Number, forward
from clusterucb.gradients.featurizer import Featurizer, target_directions
from clusterucb.gradients.projection import Projection
from clusterucb.run.costs import Cost
from clusterucb.runtime.processes import ALONE, World
from clusterucb.runtime.screen import Screen


@dataclass(frozen=True)
class Pooled:
    """The usable rows of a pool as tokens for gradients.

    Attributes:
        pool: where they come from.
        rows: the pool row of each usable row, (N,).
        tokens: of each usable row, cut to the gradient length.
        lengths: tokens of each, (N,).
    """

    pool: Pool
    rows: NDArray[np.int64]
    tokens: Sequence[Encoded]
    lengths: NDArray[np.int64]

    def describe(self, row: int) -> str:
        """The id of a usable row."""
        return self.pool.id(int(self.rows[row]))

    def features(
        self, featurize: Featurizer, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float16], NDArray[np.float64]]:
        """Features (b, d) and losses (b,) of one micro-batch of usable rows."""
        numbers = rows.tolist()
        return featurize([self.tokens[row] for row in numbers], lambda b: self.describe(numbers[b]))


@dataclass(frozen=True)
class Targeted:
    """The target's rows as tokens.

    Attributes:
        ids: of the rows.
        tokens: of each row, cut to the target length.
        codes: subtask of each row, (n,).
    """

    ids: Sequence[str]
    tokens: Sequence[Encoded]
    codes: NDArray[np.int64]

    def directions(
        self,
        model: nn.Module,
        projection: Projection,
        batch_tokens: int,
        screen: Screen,
        world: World = ALONE,
    ) -> tuple[NDArray[np.float32], Cost]:
        """Directions of the subtasks at the model's current weights, (S, d), and their cost."""
        started = time.monotonic()
        with screen.track("target directions", len(self.ids), "rows") as advance:
            directions = target_directions(
                Featurizer(model, projection),
                self.tokens,
                self.codes,
                batch_tokens,
                lambda i: self.ids[i],
                advance,
                world,
            )
        tokens, seconds = sum(len(row.ids) for row in self.tokens), time.monotonic() - started
        return directions, Cost(tokens=tokens, target_gradients=len(self.ids), seconds=seconds)


def forward_pool(
    compute: Compute[Number], model: PeftModel, pooled: Pooled, rows: NDArray[np.int64]
) -> NDArray[Number]:
    """The same of usable rows by their numbers, (B,)."""
    numbers = rows.tolist()
    return forward(compute, model, [pooled.tokens[i] for i in numbers], lambda b: pooled.describe(numbers[b]))


def forward_cost(pooled: Pooled, seconds: float) -> Cost:
    """Of one forward pass of every usable row."""
    rows = len(pooled.rows)
    return Cost(rows, int(pooled.lengths.sum()), seconds=seconds, pool_forwards=rows)
