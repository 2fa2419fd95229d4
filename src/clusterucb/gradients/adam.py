"""What one Adam step would do with a gradient: the direction by which a pool row moves the adapter.

Formulas (METHOD of LESS, Xia et al. 2024, arXiv 2402.04333, section 3.1; Kingma & Ba 2015 for `adam`),
with g the row's gradient and m, v the checkpoint's moments:

    less    (b1 m + (1-b1) g) / sqrt(b2 v + (1-b2) g^2 + eps)
    adam    m_hat / (sqrt(v_hat) + eps), bias corrected for the step after the checkpoint's

In `less` eps stands inside the root and nothing is corrected: early in training, where v is far below
eps, the root is almost constant and the direction is close to the plain gradient plus momentum. `adam`
is the update that torch.optim.AdamW would make, over -lr. All in float32: in half precision
(1-b2) g^2 becomes 0. Both are, up to a factor that all coordinates share,

    (g + lift) / (sqrt(g^2 + floor^2) + eps)

with lift and floor known before any gradient is: three passes over it, or one in a kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """Raise MismatchError unless there are moments of exactly these parameters and shapes."""
        found = {name: tuple(moment.shape) for name, moment in self.mean.items()}
        wanted = {name: tuple(shape) for name, shape in shapes.items()}
        if odd := sorted(dict(found.items() ^ wanted.items())):
            raise MismatchError(
                f"Adam's moments of {odd[0]} have shape {found.get(odd[0], 'none')}, the adapter's parameter "
                f"{wanted.get(odd[0], 'none')}: they belong to another adapter"
            )

    def of(self, names: Collection[str]) -> Moments:
        """Those of some of the parameters."""
        mean, square = ({name: moment[name] for name in names} for moment in (self.mean, self.square))
        return replace(self, mean=mean, square=square)


@dataclass(frozen=True)
class AdamMap:
    """Adam's direction as a function of the gradient alone, over `scale`.

    Attributes:
        lift: what is added to each parameter's gradient, float32, flat.
        floor: least length that each coordinate is divided by, but for eps, float32, flat.
        eps: added to that length.
        scale: the direction is so many times what the map gives; a feature, of length 1, does not show it.
    """

    lift: Mapping[str, torch.Tensor]
    floor: Mapping[str, torch.Tensor]
    eps: float
    scale: float

    @classmethod
    def of(cls, moments: Moments, formula: Formula, device: torch.device | str = "cpu") -> AdamMap:
        """The map at a checkpoint's moments, on a device."""
        b1, b2 = moments.betas
        inside, outside, first, second = moments.eps, 0.0, 1.0, 1.0
        if formula == "adam":
            inside, outside = 0.0, moments.eps
            first, second = 1 - b1 ** (moments.step + 1), 1 - b2 ** (moments.step + 1)
        spread = (second / (1 - b2)) ** 0.5  # from sqrt(v_hat) to sqrt(g^2 + floor^2)

        def prepared(moment: torch.Tensor) -> torch.Tensor:
            return moment.to(device, torch.float32).flatten()

        return cls(
            {name: prepared(m) * (b1 / (1 - b1)) for name, m in moments.mean.items()},
            {name: ((prepared(v) * b2 + inside) / (1 - b2)).sqrt_() for name, v in moments.square.items()},
            outside * spread,
            (1 - b1) / first * spread,
        )

    def apply(self, name: str, gradients: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Of gradients of the parameter `name`, (B, n), from its coordinate `start` on; in their place."""
        here = slice(start, start + gradients.shape[1])
        lengths = torch.hypot(gradients, self.floor[name][here])
        if self.eps:
            lengths += self.eps
        return gradients.add_(self.lift[name][here]).div_(lengths)
