"""What a step has cost, counted and never estimated; and what those of a run have written down."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from clusterucb.run.directory import RunDir, numbered
from clusterucb.run.methods import Method
from clusterucb.runtime.files import read_json

FORWARD_SHARE = 1 / 3
"""What a forward pass of a row takes, in gradients of a row: backward is twice forward.

By operations alone it would be a half, as frozen weights have no gradient; but the vocabulary head goes both
ways, attention's matrix is computed again, and Adam's direction and the projection wait for memory.
"""


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

    @classmethod
    def recorded(cls, path: Path) -> Cost:
        """What was written down with an artifact, in a JSON or a safetensors file; none in some old ones."""
        if path.suffix == ".json":
            return cls.from_json(read_json(path)["cost"])
        with safe_open(path, "numpy") as file:
            facts = file.metadata() or {}
        return cls.from_json(json.loads(facts["cost"])) if "cost" in facts else cls()


def recorded_costs(run: RunDir, method: Method, rounds: Iterable[int]) -> dict[str, Cost]:
    """What each finished step of a run has cost, in their order; `rounds` numbers its selections."""
    files = recorded_files(run, method, rounds)
    return {step: sum(map(Cost.recorded, found), Cost()) for step, found in files.items()}


def recorded_files(run: RunDir, method: Method, rounds: Iterable[int]) -> dict[str, list[Path]]:
    """The files in which that is written down, by step."""
    found: dict[str, list[Path]] = {}
    for number in method.numbers:
        found[numbered("warmup", number, " ")] = [run.checkpoint(number) / "checkpoint.json"]
    for number in range(1, method.stored + 1):
        files = [run.features_at(number) / "manifest.json", run.directions_at(number)]
        found[numbered("gradients", number, " ")] = files
    found["cluster"] = [run.clusters.with_suffix(".json")] if method.budgeted else []
    for number in rounds:
        found[f"select {number}"] = [run.round(number) / "summary.json"]
    found["train"] = [run.adapter / "checkpoint.json"]
    found["evaluate"] = [*sorted(run.period(1).parent.glob("*.json")), run.evaluation]
    there = {step: [file for file in files if file.exists()] for step, files in found.items()}
    return {step: files for step, files in there.items() if files}
