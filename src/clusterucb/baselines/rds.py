"""The baseline `rds`: rows whose hidden states are like those of the target, by the cosine.

RDS+ (Ivison et al. 2025, arXiv 2503.01807); what stands for a row is in forward/representations.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["cosines"]


def cosines(rows: NDArray[Any], targets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Similarities (n, b) of n target rows (n, H) to b rows (b, H), both of norm 1.

    Computed in float64 and rounded, so that a row's do not depend on the rows beside it.
    """
    products: NDArray[np.float32] = (targets.astype(np.float64) @ rows.T.astype(np.float64)).astype(
        np.float32
    )
    return products
