"""A row as one vector: RDS+ (Ivison et al. 2025, arXiv 2503.01807), of the model's hidden states.

The mean of the last layer's hidden states, with weights that grow with the position, as in SGPT (Muennighoff
2022, arXiv 2202.08904):

    sum_i i h_i / sum_i i, i from 1 over all T tokens of the row, prompt and answer

Knows the model and one batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from clusterucb.gradients.batches import Batch
from clusterucb.gradients.per_sample import eval_mode

__all__ = ["representations"]


def representations(model: PeftModel, batch: Batch) -> NDArray[np.float32]:
    """The weighted mean of each row's last hidden states, of norm 1, (B, H).

    They are those that the vocabulary head would get; the head itself does not run.
    """
    transformer = model.get_base_model().base_model
    with torch.no_grad(), eval_mode(model):
        hidden = transformer(
            input_ids=batch.ids, attention_mask=batch.attention, use_cache=False
        ).last_hidden_state  # (B, T, H)
        weights = batch.attention.cumsum(1) * batch.attention  # (B, T): 1, 2, ..., and 0 for padding
        weights = weights / weights.sum(1, keepdim=True)
        means = torch.bmm(weights[:, None].float(), hidden.float())[:, 0]  # (B, H)
        found: NDArray[np.float32] = torch.nn.functional.normalize(means, dim=1).cpu().numpy()
    return found
