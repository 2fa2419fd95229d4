"""Loss on rows of the task: the mean over rows of each row's mean cross-entropy on its labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from clusterucb.data.chat import Encoded
from clusterucb.gradients.batches import collate, micro_batches
from clusterucb.gradients.per_sample import row_losses
from clusterucb.runtime.processes import ALONE, World


def losses(
    model: nn.Module,
    rows: Sequence[Encoded],
    batch_tokens: int = 4096,
    progress: Callable[[int], None] = lambda _rows: None,
    world: World = ALONE,
) -> NDArray[np.float64]:
    """Mean cross-entropy in nats over the labels of each row, (n,), in eval mode."""
    device = next(model.parameters()).device
    lengths = np.array([len(row.ids) for row in rows], np.int64)
    out = np.empty(len(rows), np.float64)

    def compute(batches: Sequence[NDArray[np.int64]]) -> Iterator[NDArray[np.float64]]:
        return (row_losses(model, collate([rows[i] for i in batch.tolist()], device)) for batch in batches)

    for batch, found in world.share(micro_batches(lengths, batch_tokens), compute):
        out[batch] = found
        progress(len(batch))
    return out
