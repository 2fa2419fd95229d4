"""Micro-batches: rows of like length, padded on the right, bounded by a number of tokens.

Knows lengths and padding only. A plan depends on nothing but the lengths and the bound, so a resumed
run makes the same batches, and with them the same rounding, as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from clusterucb.data.chat import Encoded
from clusterucb.runtime.devices import to_device

USUAL_TOKENS = 4096
"""Of a micro-batch, on a CPU, where more fit and are no faster."""
MOST_TOKENS = 32768
"""On a GPU, which then no longer waits for launches, whatever fits."""
MOST_ROWS = 256
"""Of a micro-batch: each has a gradient of its own of every layer in turn."""


def micro_batches(
    lengths: NDArray[np.int64], max_tokens: int, max_rows: int | None = None
) -> list[NDArray[np.int64]]:
    """Split rows of so many tokens (n,) into batches of like length, the longest rows first.

    Rows times padded length of a batch is at most `max_tokens`; a longer row stands alone. Returns positions
    into `lengths`, one array a batch of at most `max_rows`; every position occurs once.
    """
    most = max_rows or MOST_ROWS
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        size = min(most, max(1, max_tokens // int(lengths[order[start]])))
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
        weights: of each label in its row's mean, (L,).
        owners: row b of each label, (L,), on the host.
        label_counts: labels of each row, (B,), on the host.
    """

    ids: torch.Tensor
    attention: torch.Tensor
    predictors: torch.Tensor
    answers: torch.Tensor
    weights: torch.Tensor
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
    """Pad rows on the right into one batch on `device`; a row without a label has no loss."""
    ids, attention, labels = padded(rows)
    owners, before = np.nonzero(labels[:, 1:])  # nothing predicts a row's first token
    counts, there = labels[:, 1:].sum(1), torch.device(device)
    return Batch(
        ids=to_device(ids, there),
        attention=to_device(attention, there),
        predictors=to_device(owners * ids.shape[1] + before, there),
        answers=to_device(ids[owners, before + 1], there),
        weights=to_device((1.0 / counts[owners]).astype(np.float32), there),
        owners=owners,
        label_counts=counts,
    )
