"""What the model makes of rows without gradients, one micro-batch at a time; and a row as one vector.

The vector is RDS+'s (Ivison et al. 2025, arXiv 2503.01807): the mean of a layer's hidden states with weights
that grow with the position, as in SGPT (Muennighoff 2022, arXiv 2202.08904):

    sum_i i h_i / sum_i i, i from 1 over all T tokens of the row, prompt and answer

RDS+ takes the last layer. Knows the model and one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import nn

from clusterucb.data.chat import Encoded
from clusterucb.errors import InputError
from clusterucb.gradients.anatomy import check_steady, eval_mode, stacked_layers
from clusterucb.gradients.batches import Batch, collate
from clusterucb.runtime.memory import FORWARD, Describe, Room, Work, within_memory

Number = TypeVar("Number", bound=np.floating)


def forward(
    compute: Callable[[PeftModel, Batch], NDArray[Number]],
    model: PeftModel,
    rows: Sequence[Encoded],
    describe: Describe = "row {}".format,
    room: Room | None = None,
    work: Work = FORWARD,
) -> NDArray[Number]:
    """What `compute` makes of a micro-batch, (B, ...), in parts where `room` has shown that it does not fit.

    Raises InputError where memory does not suffice for one row alone, or what is computed of it is not
    finite; `describe(i)` names row i.
    """

    def computed(rows: Sequence[Encoded], describe: Describe) -> NDArray[Number]:
        found = compute(model, collate(rows, model.device))
        usable = np.isfinite(found.reshape(len(rows), -1)).all(1)
        if not usable.all():
            raise InputError(
                f"{describe(int(usable.argmin()))}: what the model computes of it is not a finite number; "
                f"try --dtype float32, or take the row out of the file"
            )
        return found

    space = (room or Room()).at(work, model.device)
    return np.concatenate(within_memory(computed, rows, describe, model, space))


def representations(model: PeftModel, batch: Batch, depth: float = 1.0) -> NDArray[np.float32]:
    """The weighted mean of each row's hidden states at a share of the layers, of norm 1, (B, H).

    At `depth` 1 they are those that the vocabulary head would get. Nothing behind them runs.
    """
    transformer = model.get_base_model().base_model
    with torch.no_grad(), eval_mode(model):
        hidden = hidden_states(transformer, batch, depth)  # (B, T, H)
        weights = batch.attention.cumsum(1) * batch.attention  # (B, T): 1, 2, ..., and 0 for padding
        weights = weights / weights.sum(1, keepdim=True)
        means = torch.bmm(weights[:, None].float(), hidden.float())[:, 0]  # (B, H)
        found: NDArray[np.float32] = torch.nn.functional.normalize(means, dim=1).cpu().numpy()
    return found


class _ReachedError(Exception):
    """The layer that was asked for has run."""


def hidden_states(transformer: nn.Module, batch: Batch, depth: float = 1.0) -> torch.Tensor:
    """Of every token at a share of the layers, (B, T, H)."""
    check_steady(transformer, batch.ids.shape[1])
    inputs = {"input_ids": batch.ids, "attention_mask": batch.attention, "use_cache": False}
    layers = stacked_layers(transformer)
    number = max(1, round(depth * len(layers)))
    if number >= len(layers):
        last: torch.Tensor = transformer(**inputs).last_hidden_state
        return last
    found: list[torch.Tensor] = []

    def stop(_module: nn.Module, _args: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _ReachedError

    with layers[number - 1].register_forward_hook(stop), suppress(_ReachedError):
        transformer(**inputs)
    return found[0]


def hidden_size(model: nn.Module) -> int:
    """Numbers of a token's last hidden state, as the vocabulary head gets it."""
    head: nn.Linear = model.get_output_embeddings()  # type: ignore[operator]
    return head.in_features
