"""Loss on rows of the task: the mean over rows of each row's mean cross-entropy on its labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from clusterucb.data.chat import Encoded
from clusterucb.gradients.batches import collate, micro_batches
from clusterucb.gradients.per_sample import row_losses
from clusterucb.runtime.memory import LOSSES, Describe, Room, within_memory
from clusterucb.runtime.processes import ALONE, World


def losses(
    model: nn.Module,
    rows: Sequence[Encoded],
    batch_tokens: int = 4096,
    progress: Callable[[int], None] = lambda _rows: None,
    world: World = ALONE,
    describe: Describe = "row {}".format,
    room: Room | None = None,
) -> NDArray[np.float64]:
    """Mean cross-entropy in nats over the labels of each row, (n,), in eval mode.

    Raises InputError where memory does not suffice for one row alone; `describe(i)` names row i.
    """
    device = next(model.parameters()).device
    space = (room or Room()).at(LOSSES, device)
    lengths = np.array([len(row.ids) for row in rows], np.int64)
    out = np.empty(len(rows), np.float64)

    def of_rows(some: Sequence[Encoded], _describe: Describe) -> NDArray[np.float64]:
        return row_losses(model, collate(some, device))

    def compute(batches: Sequence[NDArray[np.int64]]) -> Iterator[NDArray[np.float64]]:
        for batch in batches:
            names, some = zip(*((describe(i), rows[i]) for i in batch.tolist()), strict=True)
            yield np.concatenate(within_memory(of_rows, some, names.__getitem__, model, space))

    for batch, found in world.share(micro_batches(lengths, batch_tokens), compute):
        out[batch] = found
        progress(len(batch))
    return out
