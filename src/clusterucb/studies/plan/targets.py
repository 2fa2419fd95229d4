"""What several targets take, one run each: over one index, or every run with an index of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clusterucb.config import Config
from clusterucb.studies.plan.outlook import Outlook
from clusterucb.studies.plan.spending import Planned

_OF_AN_INDEX = ("warmup", "gradients", "cluster")


def for_targets(found: Outlook, config: Config, targets: int) -> dict[str, Any]:
    """`index`, what any target begins with; `each`, the rest of a run; and both totals: passes and seconds.

    `over_one_index` is index + T each, `alone` T (index + each); where there is an index already, only what
    it lacks is counted in the first. Time for the gradients of target rows at the index's checkpoints is
    counted with the index, though every target takes its own: they are few.
    """
    without = replace(found, facts=replace(found.facts, index=None))
    steps = found.steps(config)
    shared = {name: step for name, step in steps.items() if name.split()[0] in _OF_AN_INDEX}

    def spent(part: Mapping[str, Planned]) -> dict[str, float]:
        bill = found.bill(config, part)
        return {key: bill[key] for key in ("passes", "seconds")}

    whole, index = spent(steps), spent(shared)
    each = {key: whole[key] - index[key] for key in whole}
    over = {key: index[key] + targets * each[key] for key in whole}
    alone = {key: targets * amount for key, amount in spent(without.steps(config)).items()}
    return {"targets": targets, "index": index, "each": each, "over_one_index": over, "alone": alone}
