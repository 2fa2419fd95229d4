"""What several targets take, one run each: over one index, or every run with an index of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clusterucb.run.costs import FORWARD_SHARE

_OF_AN_INDEX = ("warmup", "gradients", "cluster")
_COUNTED = ("pool_gradients", "pool_forwards", "seconds")


def for_targets(plan: Mapping[str, Any], targets: int) -> dict[str, Any]:
    """By a run's plan: `index`, what any target begins with; `each`, the rest of a run; and both totals.

    `over_one_index` is index + T each, `alone` T (index + each). Time for the gradients of target rows at the
    index's checkpoints is counted with the index, though every target takes its own: they are few.
    """
    shared = {name: step for name, step in plan["steps"].items() if name.split()[0] in _OF_AN_INDEX}
    index = {key: sum(step[key] or 0 for step in shared.values()) for key in _COUNTED}
    each = {key: plan["total"][key] - index[key] for key in _COUNTED}
    over = {key: index[key] + targets * each[key] for key in _COUNTED}
    alone = {key: targets * plan["total"][key] for key in _COUNTED}
    parts = {"index": index, "each": each, "over_one_index": over, "alone": alone}
    return {"targets": targets, **{name: _worth(part) for name, part in parts.items()}}


def _worth(part: dict[str, Any]) -> dict[str, Any]:
    return {**part, "gradient_equivalents": part["pool_gradients"] + FORWARD_SHARE * part["pool_forwards"]}
