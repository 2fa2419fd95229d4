"""A row as the gradient of a linear map before the vocabulary head, from a forward pass alone.

With logits W M h, and M the identity, the gradient of a row's loss in M is over its labels t

    sum_t  W' (softmax_t - onehot_t) h_t'                                        (H, H)

It is kept as sum_t (P W' (softmax_t - onehot_t)) (Q h_t)', with P and Q of random signs: inner products are
those of the whole on average. A head that caps its logits is taken as linear. Knows the model and one batch.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import nn

from clusterucb.features.hidden import hidden_states
from clusterucb.gradients.anatomy import eval_mode
from clusterucb.gradients.batches import Batch


def sides(dim: int) -> tuple[int, int]:
    """Rows of P and of Q: about as many, and no more than `dim` numbers in all."""
    return math.isqrt(dim), dim // math.isqrt(dim)


def head_gradients(model: PeftModel, batch: Batch, dim: int, seed: int) -> NDArray[np.float32]:
    """Each row's, of norm 1, (B, p q) with p, q of `sides(dim)` and signs by the seed."""
    head: nn.Linear = model.get_output_embeddings()
    p, q = (signs(size, head.in_features, seed + i).to(model.device) for i, size in enumerate(sides(dim)))
    with torch.no_grad(), eval_mode(model):
        hidden = hidden_states(model.get_base_model().base_model, batch)  # (B, T, H)
        hidden = hidden.reshape(-1, hidden.shape[-1])[batch.predictors]  # (L, H)
        errors = torch.softmax(head(hidden).float(), dim=1)  # (L, V)
        errors[torch.arange(len(errors), device=errors.device), batch.answers] -= 1
        errors = errors @ (head.weight.float() @ p.T)  # (L, p)
        inputs, counts = hidden.float() @ q.T, batch.label_counts.tolist()  # (L, q)
        rows = zip(torch.split(errors, counts), torch.split(inputs, counts), strict=True)
        gradients = torch.stack([(e.T @ x).flatten() for e, x in rows])  # (B, p q)
        found: NDArray[np.float32] = nn.functional.normalize(gradients, dim=1).cpu().numpy()
    return found


def signs(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Random signs, (rows, columns), the same on every device."""
    drawn = np.random.default_rng(seed).integers(0, 2, (rows, columns), np.int8)
    return torch.from_numpy(2 * drawn - 1).float()
