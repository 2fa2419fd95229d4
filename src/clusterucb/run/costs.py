"""What a step has cost, counted and never estimated; what those of a run have written down; its bill."""

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
ways, attention's matrix is computed again, and Adam's direction and the projection wait for memory. Hidden
states, for which a pass ends at two thirds of the layers, take less than is counted (docs/benchmarks.md).
"""

TOP_SHARE = 3 / 4
"""What a gradient of the upper half of the layers takes: half of the way back is left out."""


def gradient_share(method: Method) -> float:
    """What one of a method's gradients takes, in gradients of all layers."""
    return TOP_SHARE if method.top else 1.0


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
    return _recorded(recorded_files(run, method, rounds))


def index_costs(run: RunDir, method: Method) -> dict[str, Cost]:
    """What of that the index has cost at which the run began."""
    files = recorded_files(run, method, ())
    return _recorded({step: [file for file in found if not run.holds(file)] for step, found in files.items()})


def _recorded(files: Mapping[str, list[Path]]) -> dict[str, Cost]:
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
    found["benchmarks"] = _asked(run)
    there = {step: [file for file in files if file.exists()] for step, files in found.items()}
    return {step: files for step, files in there.items() if files}


def _asked(run: RunDir) -> list[Path]:
    """What base and adapter took to answer the benchmarks last asked, by the tokens of the prompts."""
    results = run.benchmarks / "results.json"
    found = read_json(results)["benchmarks"].values() if results.exists() else ()
    folders = (folder for each in found for folder in each.get("answers", {}).values())
    return [results.parent / folder / "cost.json" for folder in folders]


_PARTS = {"warmup": "warmup", "train": "training", "evaluate": "evaluation", "benchmarks": "evaluation"}


def part_of(step: str) -> str:
    """Which part of a run a step is, by its first word: warmup, training, evaluation or else selecting."""
    return _PARTS.get(step.split()[0], "selecting")


@dataclass(frozen=True)
class Work:
    """What a bill has to know besides what the steps took.

    Attributes:
        rows: usable ones of the pool, N.
        tokens: that the gradients of all N see: one pass over the pool.
        training_tokens: that training on all N sees.
        target_tokens: of the target's rows.
        times: how often scoring everything takes the gradients of all rows; 0 where a method takes none.
        gradient: what one of them takes, in gradients of all layers.
    """

    rows: int
    tokens: int
    training_tokens: int
    target_tokens: int
    times: int
    gradient: float = 1.0

    def passes(self, step: str, cost: Cost) -> float:
        """What a step is worth in passes; a token costs alike in a gradient and in training."""
        part = part_of(step)
        if cost.pool_forwards or part == "evaluation":
            return FORWARD_SHARE * cost.tokens / self.tokens
        return (self.gradient if part == "selecting" else 1.0) * cost.tokens / self.tokens


def bill(steps: Mapping[str, Cost], work: Work, index: Mapping[str, Cost] | None = None) -> dict[str, Any]:
    """All that a run takes, in passes over the pool and seconds, by its parts and against doing without.

    `score_all` is the same method with the gradients of all rows whenever it takes any, with its warmup,
    training and evaluation; `train_only` is training for as many steps on any rows, and evaluation. Their
    seconds are by this run's speed, and None where it has not shown it. `index` is what of the steps an index
    has, which is made once for many runs; the sums have it in them.
    """
    parts = {
        name: _sums({step: cost for step, cost in steps.items() if part_of(step) == name}, work)
        for name in ("warmup", "selecting", "training", "evaluation")
    }
    passes, seconds = map(sum, zip(*parts.values(), strict=True))
    selecting, evaluation, trained = parts["selecting"], parts["evaluation"], steps.get("train", Cost())
    scored = sum((cost for cost in steps.values() if cost.pool_gradients), Cost())
    tokens = work.times * (work.tokens + work.target_tokens)
    score_all = _spent(
        passes - selecting[0] + work.gradient * tokens / work.tokens,
        seconds - selecting[1] + tokens * scored.seconds / scored.tokens if scored.seconds else None,
    )
    tokens = round(trained.rows * work.training_tokens / work.rows)
    train_only = _spent(
        tokens / work.tokens + evaluation[0],
        tokens * trained.seconds / trained.tokens + evaluation[1] if trained.seconds else None,
    )
    return {
        **_spent(passes, seconds),
        "one_pass": {"rows": work.rows, "tokens": work.tokens},
        "parts": {name: _spent(*amounts) for name, amounts in parts.items()},
        "score_all": {"times": work.times, **score_all} if work.times else None,
        "train_only": train_only if trained.rows else None,
        "index": _spent(*_sums(index, work)) if index else None,
    }


def _sums(steps: Mapping[str, Cost], work: Work) -> tuple[float, float]:
    """Passes and seconds."""
    passes = sum((work.passes(step, cost) for step, cost in steps.items()), 0.0)
    return passes, sum((cost.seconds for cost in steps.values()), 0.0)


def _spent(passes: float, seconds: float | None) -> dict[str, float | None]:
    return {"passes": round(passes, 4), "seconds": None if seconds is None else round(seconds, 3)}


def selecting_passes(method: Method, periods: int, share: float) -> float:
    """Passes over the pool that selecting takes, by rows, if a selection may look at a `share` of them."""
    fresh = periods - method.ranks_stored if method.reselects else method.checkpoints - method.stored
    gradient = gradient_share(method)
    known = FORWARD_SHARE * (not method.words) if method.by_likeness else gradient
    return method.stored * known + fresh * share * gradient
