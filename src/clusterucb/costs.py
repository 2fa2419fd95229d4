"""What a step has cost, counted and never estimated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Cost"]


@dataclass(frozen=True)
class Cost:
    """Rows gone through, their tokens, per-row gradients of pool and target, and wall-clock seconds.

    Pool rows that went through the model forward alone, without a gradient, are counted by themselves.
    """

    rows: int = 0
    tokens: int = 0
    pool_gradients: int = 0
    target_gradients: int = 0
    seconds: float = 0.0
    pool_forwards: int = 0

    def __add__(self, other: Cost) -> Cost:
        mine, others = asdict(self), asdict(other)
        return Cost(**{key: mine[key] + others[key] for key in mine})

    def to_json(self) -> dict[str, Any]:
        """A plain object, seconds to the millisecond."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Cost:
        """What `to_json` wrote."""
        return cls(**content)
