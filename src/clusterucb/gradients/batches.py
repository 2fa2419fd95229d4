"""Micro-batches: rows of like length, padded on the right, bounded by a number of tokens.

Knows lengths and padding only. A plan depends on nothing but the lengths and the bound, so a resumed
run makes the same batches, and with them the same rounding, as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clusterucb.data.chat import Encoded
from clusterucb.errors import InputError
from clusterucb.runtime.sharding import is_sharded

Describe = Callable[[int], str]
"""Names row i of a micro-batch in an error."""

Result = TypeVar("Result")


def micro_batches(lengths: NDArray[np.int64], max_tokens: int) -> list[NDArray[np.int64]]:
    """Split rows of so many tokens (n,) into batches of like length, the longest rows first.

    Rows times padded length of a batch is at most `max_tokens`; a longer row stands alone. Returns positions
    into `lengths`, one array a batch; every position occurs once.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        size = max(1, max_tokens // int(lengths[order[start]]))
        batches.append(order[start : start + size])
        start += size
    return batches


@dataclass(frozen=True)
class Batch:
    """Padded rows on a device, and where their labels are.

    Attributes:
        ids: token ids, (B, T).
        attention: 1 for tokens, 0 for padding, (B, T).
        predictors: flat positions b * T + t whose next token is a label, (L,).
        answers: the labels, (L,).
        owners: row b of each label, (L,), on the host.
        label_counts: labels of each row, (B,), on the host.
    """

    ids: torch.Tensor
    attention: torch.Tensor
    predictors: torch.Tensor
    answers: torch.Tensor
    owners: NDArray[np.int64]
    label_counts: NDArray[np.int64]

    def row_means(self, per_label: NDArray[np.floating]) -> NDArray[np.float64]:
        """Mean over the labels of each row, of one number a label: (L,) to (B,)."""
        sums = np.bincount(self.owners, weights=per_label, minlength=len(self.label_counts))
        return sums / self.label_counts


def padded(rows: Sequence[Encoded]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Rows padded on the right, (B, T) each: token ids, 1 for tokens and 0 for padding, where labels are."""
    shape = (len(rows), max(len(row.ids) for row in rows))
    ids, attention, labels = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for b, row in enumerate(rows):
        length = len(row.ids)
        ids[b, :length], attention[b, :length], labels[b, :length] = row.ids, 1, row.labels
    return ids, attention, labels


def collate(rows: Sequence[Encoded], device: torch.device | str = "cpu") -> Batch:
    """Pad rows on the right into one batch on `device`; every row must have a label."""
    ids, attention, labels = padded(rows)
    owners, before = np.nonzero(labels[:, 1:])  # nothing predicts a row's first token
    return Batch(
        ids=torch.from_numpy(ids).to(device),
        attention=torch.from_numpy(attention).to(device),
        predictors=torch.from_numpy(owners * ids.shape[1] + before).to(device),
        answers=torch.from_numpy(ids[owners, before + 1]).to(device),
        owners=owners,
        label_counts=labels[:, 1:].sum(1),
    )


def within_memory(
    compute: Callable[[Sequence[Encoded], Describe], Result],
    rows: Sequence[Encoded],
    describe: Describe,
    model: nn.Module,
) -> list[Result]:
    """What `compute(rows, describe)` makes of a micro-batch, or of its halves where memory runs out.

    The processes that share a sharded model compute equally often, so there nothing is halved.

    Raises:
        InputError: memory does not suffice for one row alone, or for the micro-batch where it may not be
            halved; `describe(i)` names row i.
    """
    try:
        return [compute(rows, describe)]
    except torch.OutOfMemoryError:
        device = next(model.parameters()).device
        if len(rows) == 1:
            raise InputError(
                f"{describe(0)}: out of memory on {device} for this row alone ({len(rows[0].ids)} tokens); "
                f"lower --gradient-length (of a target row --target-length), or use a smaller model or rank"
            ) from None
        if is_sharded(model):
            raise InputError(
                f"{describe(0)}: out of memory on {device} for a micro-batch of {len(rows)} rows from this "
                "one on, which processes that share a model cannot halve; lower --batch-tokens"
            ) from None
    half = len(rows) // 2
    first = within_memory(compute, rows[:half], describe, model)
    return first + within_memory(compute, rows[half:], lambda i: describe(half + i), model)
