"""Rows through the model without gradients, one micro-batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel

from clusterucb.data.chat import Encoded
from clusterucb.errors import InputError
from clusterucb.gradients.batches import Batch, Describe, collate, within_memory
from clusterucb.run.costs import Cost
from clusterucb.runtime.profiling import stage
from clusterucb.runtime.sharding import is_sharded
from clusterucb.steps.reselection import Pooled

__all__ = ["forward", "forward_cost", "forward_pool"]

Number = TypeVar("Number", bound=np.floating)
Compute = Callable[[PeftModel, Batch], NDArray[Number]]


def forward(
    compute: Compute[Number],
    model: PeftModel,
    rows: Sequence[Encoded],
    describe: Describe = "row {}".format,
) -> NDArray[Number]:
    """What `compute` makes of a micro-batch, (B, ...); out of memory, the batch is halved.

    `describe(i)` names row i in an error.

    Raises:
        InputError: memory does not suffice for one row alone, or what is computed of it is not finite.
    """

    def computed(rows: Sequence[Encoded], describe: Describe) -> NDArray[Number]:
        with stage("forward"):
            found = compute(model, collate(rows, model.device))
        usable = np.isfinite(found.reshape(len(rows), -1)).all(1)
        if not usable.all():
            raise InputError(
                f"{describe(int(usable.argmin()))}: what the model computes of it is not a finite number; "
                f"try --dtype float32, or take the row out of the file"
            )
        return found

    advice = "lower --gradient-length (of a target row --target-length) or use a smaller model"
    halve = not is_sharded(model)
    return np.concatenate(within_memory(computed, rows, describe, model.device, advice, halve=halve))


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
