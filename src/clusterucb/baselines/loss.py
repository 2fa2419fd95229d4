"""The baseline `loss`: the rows that the model finds hardest, or easiest, to predict.

Perplexity is exp(loss), so both give the same order.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Perplexity", "loss_scores"]

Perplexity = Literal["highest", "lowest"]


def loss_scores(losses: NDArray[np.float64], perplexity: Perplexity) -> NDArray[np.float64]:
    """Scores (N,) by which the largest are selected: the losses (N,), negative for `lowest`."""
    return losses if perplexity == "highest" else -losses
