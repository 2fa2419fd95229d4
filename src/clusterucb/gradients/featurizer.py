"""From token rows to features: gradient, Adam direction, projection, L2 norm 1, one micro-batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clusterucb.data.chat import Encoded
from clusterucb.errors import InputError
from clusterucb.gradients.adam import AdamMap, Formula, Moments
from clusterucb.gradients.anatomy import examine
from clusterucb.gradients.batches import MOST_TOKENS, USUAL_TOKENS, collate, micro_batches
from clusterucb.gradients.per_sample import adapter_layers, row_gradients, upper_half
from clusterucb.gradients.projection import Projection
from clusterucb.runtime.devices import room_for, to_host, wait_for
from clusterucb.runtime.memory import GRADIENTS, Describe, Room, within_memory
from clusterucb.runtime.processes import ALONE, World

Found = tuple[NDArray[np.float16], NDArray[np.float64]]


class Featurizer:
    """Turns rows into projected, normalised directions at the model's current weights.

    Args:
        model: a causal LM with a LoRA adapter.
        projection: to d dimensions.
        moments: Adam's, for pool rows; None takes the plain gradient, as for target rows.
        formula: of the Adam direction.
        room: what has fitted into memory so far.
        top: gradients are of the adapters in the upper half of the model's layers, below which none is taken.
    """

    def __init__(
        self,
        model: nn.Module,
        projection: Projection,
        moments: Moments | None = None,
        formula: Formula = "less",
        room: Room | None = None,
        top: bool = False,
    ) -> None:
        self.model, self.projection = model, projection
        every = adapter_layers(model)
        self.layers = upper_half(model, every) if top else every
        self.space = (room or Room()).at(GRADIENTS, self.device)
        self._axes = examine(model, self.layers).axes
        self.adam = None
        if moments is not None:
            moments.check({name: layer.weight.shape for name, layer in every.items()})
            with room_for("Adam's moments", "use another --device, or a lower --rank"):
                self.adam = AdamMap.of(moments.of(self.layers), formula, self.device)

    @property
    def device(self) -> torch.device:
        """Where the adapter is."""
        return next(iter(self.layers.values())).weight.device

    def __call__(self, rows: Sequence[Encoded], describe: Describe = "row {}".format) -> Found:
        """Features (B, d) of one micro-batch and the rows' losses (B,).

        Raises InputError where a row's loss or gradient is not a finite number, or memory does not suffice;
        `describe(i)` names row i.
        """
        return self.begin(rows, describe)()

    def begin(self, rows: Sequence[Encoded], describe: Describe = "row {}".format) -> Callable[[], Found]:
        """Put a micro-batch to the device; what is returned waits for it, and raises what is wrong with it.

        So the host can see to the batch before while the device is at this one.
        """
        parts = within_memory(self._batch, rows, describe, self.model, self.space)

        def finish() -> Found:
            features, losses = zip(*(part() for part in parts), strict=True)
            return np.concatenate(features), np.concatenate(losses)

        return finish

    def most_tokens(self, rows: Sequence[Encoded]) -> int:
        """Padded tokens of a micro-batch that fits, found by doubling; of `rows` the longest come first."""

        def attempt(tokens: int) -> None:
            self._batch(rows[: tokens // longest], "row {}".format)
            wait_for(self.device)

        longest = len(rows[0])
        return self.space.most(attempt, USUAL_TOKENS, min(MOST_TOKENS, len(rows) * longest))

    def _batch(self, rows: Sequence[Encoded], describe: Describe) -> Callable[[], Found]:
        sketch = torch.zeros(len(rows), self.projection.dim, device=self.device)
        batch = collate(rows, self.device)

        def consume(name: str, gradients: torch.Tensor) -> None:
            self.projection.add_to(sketch, name, gradients, self.adam)

        label_losses = row_gradients(self.model, self.layers, batch, consume, self._axes)
        lengths = torch.linalg.vector_norm(sketch, dim=1)
        features = (sketch / lengths[:, None]).to(torch.float16)
        arrived = to_host(features, lengths, label_losses)

        def finish() -> Found:
            features, norms, per_label = arrived()
            losses = batch.row_means(per_label)
            usable = np.isfinite(losses) & np.isfinite(norms) & (norms > 0)
            if not usable.all():
                bad = int(np.flatnonzero(~usable)[0])
                raise InputError(
                    f"{describe(bad)}: its loss is {losses[bad]:.4g} and its gradient's norm "
                    f"{norms[bad]:.4g}, expected finite numbers above 0; "
                    f"try --dtype float32, or take the row out of the file"
                )
            return features, losses

        return finish


def one_ahead(
    featurize: Featurizer,
    rows: Sequence[Encoded],
    batches: Iterable[NDArray[np.int64]],
    describe: Describe = "row {}".format,
) -> Iterator[Found]:
    """What is found of each batch of places in `rows`; the device is at the next one meanwhile."""
    begun: Callable[[], Found] | None = None
    for batch in batches:
        places = batch.tolist()
        names = [describe(place) for place in places]
        waiting, begun = begun, featurize.begin([rows[i] for i in places], names.__getitem__)
        if waiting:
            yield waiting()
    if begun:
        yield begun()


def target_directions(
    featurize: Featurizer,
    rows: Sequence[Encoded],
    codes: NDArray[np.int64],
    batch_tokens: int,
    describe: Callable[[int], str] = "target row {}".format,
    progress: Callable[[int], None] = lambda _rows: None,
    world: World = ALONE,
) -> NDArray[np.float32]:
    """The direction of each subtask: the mean of its rows' normalised projected gradients, (S, d).

    Args:
        featurize: without moments.
        rows: the target's rows.
        codes: subtask of each row, 0 to S - 1.
        batch_tokens: bound of a micro-batch.
        describe: names row i in an error.
        progress: told the number of rows after each micro-batch.
        world: processes that share the micro-batches; the sums are formed in one order whatever their number.
    """

    def features(batches: Sequence[NDArray[np.int64]]) -> Iterator[NDArray[np.float16]]:
        return (found for found, _ in one_ahead(featurize, rows, batches, describe))

    lengths = np.array([len(row.ids) for row in rows], np.int64)
    sums = np.zeros((int(codes.max()) + 1, featurize.projection.dim), np.float64)
    for batch, found in world.share(micro_batches(lengths, batch_tokens), features, each=8):
        np.add.at(sums, codes[batch], found.astype(np.float64))
        progress(len(batch))
    return (sums / np.bincount(codes)[:, None]).astype(np.float32)
