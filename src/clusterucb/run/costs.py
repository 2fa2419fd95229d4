"""What a step has cost, counted and never estimated; and what those of a run have written down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from clusterucb.run.directory import RunDir
from clusterucb.runtime.files import read_json

FORWARD_SHARE = 1 / 3
"""What a forward pass of a row takes, in gradients of a row."""


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

    @property
    def gradient_equivalents(self) -> float:
        """Gradients of pool rows, with every forward pass of one counted as a share of a gradient."""
        return self.pool_gradients + FORWARD_SHARE * self.pool_forwards

    def to_json(self) -> dict[str, Any]:
        """A plain object, seconds to the millisecond."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Cost:
        """What `to_json` wrote."""
        return cls(**content)


def numbered(step: str, number: int) -> str:
    """The name of a step at checkpoint `number`, from 1."""
    return step if number == 1 else f"{step} {number}"


def recorded_costs(run: RunDir, checkpoints: Iterable[int], rounds: Iterable[int]) -> dict[str, Cost]:
    """What each step that is finished has cost, in their order.

    Args:
        run: the run directory.
        checkpoints: numbers of the warmup's checkpoints.
        rounds: numbers of the selections.
    """
    numbers = list(checkpoints)
    files = {
        **{numbered("warmup", n): [run.checkpoint(n) / "checkpoint.json"] for n in numbers},
        **{numbered("gradients", n): [run.features_at(n) / "manifest.json"] for n in numbers},
        "cluster": [run.path / "clusters.json"],
        **{f"select {n}": [run.round(n) / "summary.json"] for n in rounds},
        "train": [run.adapter / "checkpoint.json"],
        "evaluate": [*sorted(run.period(1).parent.glob("*.json")), run.evaluation],
    }
    there = {step: [file for file in found if file.exists()] for step, found in files.items()}
    return {
        step: sum((Cost.from_json(read_json(file)["cost"]) for file in found), Cost())
        for step, found in there.items()
        if found
    }
