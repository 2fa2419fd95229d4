"""The gradient of one optimizer step: its rows in micro-batches by tokens, as they fit into memory.

The loss is the mean of the cross-entropy over all labels of the step, in all processes, as in transformers'
Trainer. It does not depend on how rows are split, so neither do gradients, but by rounding, and by dropout,
whose draws do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clusterucb.data.chat import Encoded
from clusterucb.errors import InputError
from clusterucb.gradients.batches import Batch, collate, micro_batches
from clusterucb.gradients.per_sample import label_losses
from clusterucb.runtime.devices import to_host
from clusterucb.runtime.memory import TRAINING, Describe, Room, within_memory
from clusterucb.runtime.processes import ALONE, World
from clusterucb.runtime.sharding import is_sharded

Placed = tuple[int, Encoded]
"""A row with its place in the dataset."""


@dataclass
class StepPasses:
    """Goes through a step's rows, forward and backward.

    Attributes:
        model: with the parameters that are trained.
        batch_tokens: padded tokens at once, at most.
        batch_rows: rows at once, at most; without it by tokens alone.
        describe: names the row at a place.
        room: what has fitted into memory so far.
        world: processes that each take their share of the step's rows.
    """

    model: nn.Module
    batch_tokens: int = 4096
    batch_rows: int | None = None
    describe: Callable[[int], str] = "row {}".format
    room: Room = field(default_factory=Room)
    world: World = ALONE

    def __call__(self, placed: Sequence[Placed]) -> float:
        """Leave the step's gradient in the parameters; returns its mean loss.

        Of several processes each returns its share's part of that, times their number. A row without a label
        is passed over.

        Raises:
            InputError: the loss of a row is not a finite number, or memory does not suffice for it alone.
        """
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        gradient = _Gradient(parameters)
        batches, labels = self._planned(placed), sum(int(row.labels[1:].sum()) for _, row in placed)
        sharded = is_sharded(self.model)
        share = (self.world.size if sharded else 1) / labels  # a sharded model takes means over processes
        space = self.room.at(TRAINING, parameters[0].device)

        def go_through(rows: Sequence[Encoded], _describe: Describe) -> tuple[Batch, torch.Tensor]:
            batch = collate(rows, parameters[0].device)
            losses = label_losses(self.model, batch)
            gradient.of((share * losses).sum())
            return batch, losses.detach()

        found = list[tuple[Batch, torch.Tensor]]()
        for batch in batches:
            places, rows = zip(*batch, strict=True)
            found += within_memory(go_through, rows, partial(self._describe, places), self.model, space)
        gradient.put(None if sharded else self.world)
        losses = self._finite(found, [place for batch in batches for place, _ in batch])
        return float(losses.sum()) * self.world.size / labels

    def _describe(self, places: Sequence[int], row: int) -> str:
        return self.describe(places[row])

    def _planned(self, placed: Sequence[Placed]) -> list[list[Placed]]:
        """This process' micro-batches; where a model is sharded, as many as each process has."""
        own = [
            (place, row) for place, row in placed[self.world.rank :: self.world.size] if row.labels[1:].any()
        ]
        lengths = np.array([len(row) for _, row in own], np.int64)
        planned = micro_batches(lengths, self.batch_tokens, self.batch_rows)
        batches = [[own[i] for i in batch.tolist()] for batch in planned]
        if is_sharded(self.model):
            idle = [(placed[0][0], Encoded(placed[0][1].ids, np.zeros(len(placed[0][1]), bool)))]
            most = max(self.world.gather(len(batches)))
            batches += [idle] * (most - len(batches))
        return batches

    def _finite(
        self, found: Sequence[tuple[Batch, torch.Tensor]], places: Sequence[int]
    ) -> NDArray[np.floating]:
        """The losses of all labels; InputError that names a row whose loss is none."""
        if not found:
            return np.zeros(0)
        (losses,) = to_host(torch.cat([losses for _, losses in found]))()
        if not np.isfinite(losses).all():
            ends = np.cumsum([len(losses) for _, losses in found])[:-1]
            parts = zip(found, np.split(losses, ends), strict=True)
            means = np.concatenate([batch.row_means(own) for (batch, _), own in parts])
            bad = int(np.isfinite(means).argmin())
            raise InputError(
                f"the loss is {means[bad]} on {self.describe(places[bad])}; lower --lr, use --dtype float32, "
                "or take the row out"
            )
        return losses


class _Gradient:
    """The sum over micro-batches; one is added whole or, where memory runs out on its way, not at all."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters, self._sum = parameters, list[torch.Tensor]()

    def of(self, loss: torch.Tensor) -> None:
        """Add one more's."""
        try:
            loss.backward()  # type: ignore[no-untyped-call]
            found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        finally:
            for parameter in self._parameters:
                parameter.grad = None
        if self._sum:
            torch._foreach_add_(self._sum, found)
        else:
            self._sum = found

    def put(self, world: World | None) -> None:
        """Give the sum, of all processes of a world, to the parameters."""
        found = self._sum or [torch.zeros_like(p) for p in self._parameters]
        if world is not None and world.size > 1:
            flat = world.total(torch.cat([gradient.flatten() for gradient in found]))
            parts = torch.split(flat, [gradient.numel() for gradient in found])
            found = [part.view_as(gradient) for part, gradient in zip(parts, found, strict=True)]
        for parameter, gradient in zip(self._parameters, found, strict=True):
            parameter.grad = gradient
