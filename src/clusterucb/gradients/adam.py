"""What one Adam step would do with a gradient: the direction by which a pool row moves the adapter.

Formulas (METHOD of LESS, Xia et al. 2024, arXiv 2402.04333, section 3.1; Kingma & Ba 2015 for `adam`),
with g the row's gradient and m, v the checkpoint's moments:

    less    (b1 m + (1-b1) g) / sqrt(b2 v + (1-b2) g^2 + eps)
    adam    m_hat / (sqrt(v_hat) + eps), bias corrected for the step after the checkpoint's

In `less` eps stands inside the root and nothing is corrected: early in training, where v is far below
eps, the root is almost constant and the direction is close to the plain gradient plus momentum. `adam`
is the update that torch.optim.AdamW would make, over -lr. All in float32: in half precision
(1-b2) g^2 becomes 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from clusterucb.errors import MismatchError

Formula = Literal["less", "adam"]


@dataclass(frozen=True)
class Moments:
    """Adam's state at a checkpoint, by canonical parameter name.

    Attributes:
        mean: first moments m, float32, shaped as the parameters.
        square: second moments v, float32.
        step: optimizer steps taken.
        betas: Adam's decay rates (b1, b2).
        eps: Adam's epsilon.
    """

    mean: Mapping[str, torch.Tensor]
    square: Mapping[str, torch.Tensor]
    step: int
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def to(self, device: torch.device | str) -> Moments:
        """The same moments on `device`, in float32."""
        mean, square = (
            {name: moment.to(device, torch.float32) for name, moment in moments.items()}
            for moments in (self.mean, self.square)
        )
        return replace(self, mean=mean, square=square)

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """Raise MismatchError unless there are moments of exactly these parameters and shapes."""
        found = {name: tuple(moment.shape) for name, moment in self.mean.items()}
        wanted = {name: tuple(shape) for name, shape in shapes.items()}
        if odd := sorted(dict(found.items() ^ wanted.items())):
            raise MismatchError(
                f"Adam's moments of {odd[0]} have shape {found.get(odd[0], 'none')}, the adapter's parameter "
                f"{wanted.get(odd[0], 'none')}: they belong to another adapter"
            )


def adam_direction(
    gradients: torch.Tensor, name: str, moments: Moments, formula: Formula = "less"
) -> torch.Tensor:
    """Adam's direction for each row's gradient of the parameter `name`: (B, ...) to (B, ...), float32."""
    b1, b2 = moments.betas
    g = gradients.float()
    m = torch.lerp(g, moments.mean[name], b1)  # b1 m + (1 - b1) g
    v = (b2 * moments.square[name]).addcmul(g, g, value=1 - b2)  # b2 v + (1 - b2) g^2
    if formula == "less":
        return m.mul_(v.add_(moments.eps).rsqrt_())
    t = moments.step + 1
    m_hat = m.div_(1 - b1**t)
    v_hat = v.div_(1 - b2**t)
    return m_hat.div_(v_hat.sqrt_().add_(moments.eps))
