"""From token rows to features: gradient, Adam direction, projection, L2 norm 1, one micro-batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clusterucb.data.chat import Encoded
from clusterucb.errors import InputError
from clusterucb.gradients.adam import Formula, Moments, adam_direction
from clusterucb.gradients.batches import collate, plan
from clusterucb.gradients.per_sample import adapter_layers, row_gradients
from clusterucb.gradients.projection import Projection
from clusterucb.profiling import stage

__all__ = ["Featurizer", "target_directions"]


@dataclass(frozen=True)
class Featurizer:
    """Turns rows into projected, normalised directions at the model's current weights.

    Attributes:
        model: a causal LM with a LoRA adapter.
        projection: to d dimensions.
        moments: Adam's, for pool rows; None takes the plain gradient, as for target rows.
        formula: of the Adam direction.
        describe: names a row for error messages, by its place in what is passed in.
    """

    model: nn.Module
    projection: Projection
    moments: Moments | None = None
    formula: Formula = "less"
    layers: dict[str, nn.Linear] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        layers = adapter_layers(self.model)
        object.__setattr__(self, "layers", layers)
        if self.moments is not None:
            self.moments.check({name: layer.weight.shape for name, layer in layers.items()})
            object.__setattr__(self, "moments", self.moments.to(self.device))

    @property
    def device(self) -> torch.device:
        """Where the adapter is."""
        return next(iter(self.layers.values())).weight.device

    def __call__(
        self, rows: Sequence[Encoded], describe: Callable[[int], str] = "row {}".format
    ) -> tuple[NDArray[np.float16], NDArray[np.float64]]:
        """Features (B, d) of one micro-batch and the rows' losses (B,).

        Out of memory, the batch is halved. `describe(i)` names row i in an error.

        Raises:
            InputError: a row's loss or gradient is not a finite number.
        """
        try:
            return self._batch(rows, describe)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise InputError(
                    f"{describe(0)}: out of memory on {self.device} for this row alone "
                    f"({len(rows[0].ids)} tokens); lower --gradient-length or use a smaller model or rank"
                ) from None
        half = len(rows) // 2
        first, first_losses = self(rows[:half], describe)
        second, second_losses = self(rows[half:], lambda i: describe(half + i))
        return np.concatenate([first, second]), np.concatenate([first_losses, second_losses])

    def _batch(
        self, rows: Sequence[Encoded], describe: Callable[[int], str]
    ) -> tuple[NDArray[np.float16], NDArray[np.float64]]:
        sketch = torch.zeros(len(rows), self.projection.dim, device=self.device)

        def consume(name: str, gradients: torch.Tensor) -> None:
            with stage("map and project"):
                if self.moments is not None:
                    gradients = adam_direction(gradients, name, self.moments, self.formula)
                self.projection.add_to(sketch, name, gradients)

        losses = row_gradients(self.model, self.layers, collate(rows, self.device), consume)
        norms = torch.linalg.vector_norm(sketch, dim=1)
        usable = np.isfinite(losses) & (norms.isfinite() & (norms > 0)).cpu().numpy()
        if not usable.all():
            bad = int(np.flatnonzero(~usable)[0])
            raise InputError(
                f"{describe(bad)}: its loss is {losses[bad]:.4g} and its gradient's norm "
                f"{float(norms[bad]):.4g}, expected finite numbers above 0; "
                f"try --dtype float32, or take the row out of the file"
            )
        return (sketch / norms[:, None]).cpu().to(torch.float16).numpy(), losses


def target_directions(
    featurize: Featurizer,
    rows: Sequence[Encoded],
    codes: NDArray[np.int64],
    batch_tokens: int,
    describe: Callable[[int], str] = "target row {}".format,
    progress: Callable[[int], None] = lambda _rows: None,
) -> NDArray[np.float32]:
    """The direction of each subtask: the mean of its rows' normalised projected gradients, (S, d).

    Args:
        featurize: without moments.
        rows: the target's rows.
        codes: subtask of each row, 0 to S - 1.
        batch_tokens: bound of a micro-batch.
        describe: names row i in an error.
        progress: told the number of rows after each micro-batch.
    """
    lengths = np.array([len(row.ids) for row in rows], np.int64)
    sums = np.zeros((int(codes.max()) + 1, featurize.projection.dim), np.float64)
    for batch in plan(lengths, batch_tokens):
        places = batch.tolist()
        features, _ = featurize([rows[i] for i in places], lambda b, p=places: describe(p[b]))  # type: ignore[misc]
        np.add.at(sums, codes[batch], features.astype(np.float64))
        progress(len(batch))
    return (sums / np.bincount(codes)[:, None]).astype(np.float32)
