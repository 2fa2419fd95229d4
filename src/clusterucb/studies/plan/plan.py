"""A run's cost before anything runs: `plan(config)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from clusterucb.config import Config
from clusterucb.errors import ConfigError
from clusterucb.run.costs import Cost
from clusterucb.run.methods import method_of
from clusterucb.run.presets import PRESETS
from clusterucb.run.sizing import Job, decide
from clusterucb.runtime.screen import Screen
from clusterucb.studies.plan.choice import Limit, choose
from clusterucb.studies.plan.spending import PROBE_SECONDS, Outlook, Planned, kept_before, look

_OF_AN_INDEX = ("warmup", "gradients", "cluster")


def plan(
    config: Config,
    *,
    quick: bool = False,
    tokens_per_second: float | None = None,
    probe_seconds: float = PROBE_SECONDS,
    limit: Limit | None = None,
    targets: int = 0,
    screen: Screen | None = None,
) -> dict[str, Any]:
    """What a run with these settings would cost; nothing is written into its directory.

    Args:
        config: of the run, whose directory need not exist.
        quick: tokenise a sample of the pool only, and let it speak for all rows.
        tokens_per_second: of gradients, on the machine that the run is for; measured on this one without it.
        probe_seconds: how long the speed is measured.
        limit: what the run may take; the settings are made cheaper until it does not take more.
        targets: tell, too, what so many of them take, one run each.
        screen: where progress is shown.

    Returns:
        What is `auto` as it is `decided` for the job; `steps`, `total` and `bill` as a run's summary.json has
        them, with the disk that they leave; the same totals for every method that the settings allow
        (`methods`); remarks; with a limit what was `chosen`, and what several `targets` take. Docs:
        docs/plan.md.

    Raises:
        ClusterUCBError: what the run itself would refuse.
    """
    found = look(
        config,
        screen or Screen(quiet=True),
        quick=quick,
        tokens_per_second=tokens_per_second,
        probe_seconds=probe_seconds,
    )
    more: dict[str, Any] = {}
    settled, asked = found.config, config
    if limit is not None:
        choice = choose(found, limit)
        settled, asked = choice.config, config.with_settings(choice.changes)
        more["chosen"] = {"settings": dict(choice.changes), "told": [*choice.told(limit)]}
    if targets:
        more["targets"] = _for_targets(found, settled, targets)
    return {**_planned(found, settled, asked), **more}


def _planned(found: Outlook, config: Config, asked: Config) -> dict[str, Any]:
    """What `plan` returns of settings that are decided, and of those asked for as other methods have them."""
    facts, method, steps = found.facts, method_of(config), found.steps(config)
    others = {name: other for name in PRESETS if (other := _as(name, asked, facts.job)) is not None}
    return {
        "method": method.name,
        "bandit": method.bandit,
        "rows": facts.rows,
        "excluded": facts.excluded,
        "exact": facts.exact,
        "decided": [one._asdict() for one in found.decided],
        "steps": {name: _step(found, step, config) for name, step in steps.items()},
        "total": _total(found, config),
        "bill": found.bill(config, steps),
        "remarks": found.remarks(config),
        "methods": {name: _total(found, other) for name, other in others.items()},
        "disk": {**kept_before(config, facts), "while training": 2 * facts.sizes.checkpoint},
        "speed": asdict(found.speed),
    }


def _step(found: Outlook, step: Planned, config: Config) -> dict[str, Any]:
    unknown = {"seconds": None} if found.seconds(step, config) is None else {}
    return {
        **step.cost.to_json(),
        **unknown,
        "expected": step.expected,
        "disk": step.disk,
        "in_index": step.in_index,
    }


def _total(found: Outlook, config: Config) -> dict[str, Any]:
    """The sum; steps of unknown time are left out of its seconds."""
    steps = found.steps(config)
    disk = sum(kept_before(config, found.facts).values()) + sum(step.disk for step in steps.values())
    passes = found.bill(config, steps)["passes"]
    total = sum((step.cost for step in steps.values()), Cost())
    return {**total.to_json(), "passes": passes, "disk": disk}


def _as(name: str, config: Config, job: Job) -> Config | None:
    """The settings of another method, decided for the job, or none if they contradict each other."""
    try:
        return decide(PRESETS[name].config(config, config.repeat, Path(config.out)), job)[0]
    except ConfigError:
        return None


def _for_targets(found: Outlook, config: Config, targets: int) -> dict[str, Any]:
    """Passes and seconds of `targets` runs: `over_one_index` is index + T each, `alone` T (index + each).

    Where there is an index already, only what it lacks is counted in the first. Time for the gradients of
    target rows at the index's checkpoints is counted with the index, though every target takes its own:
    they are few.
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
