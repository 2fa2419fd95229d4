"""A run's cost before anything runs: `plan(config)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clusterucb.config import Config
from clusterucb.errors import ConfigError
from clusterucb.run.costs import Cost
from clusterucb.run.presets import PRESETS
from clusterucb.run.session import Session
from clusterucb.run.sizing import Job, decide
from clusterucb.runtime.screen import Screen
from clusterucb.studies.plan.facts import read_facts
from clusterucb.studies.plan.probe import Speed, probe
from clusterucb.studies.plan.spending import Planned, kept_before, planned_steps

PROBE_SECONDS = 20.0


def plan(
    config: Config,
    *,
    quick: bool = False,
    tokens_per_second: float | None = None,
    probe_seconds: float = PROBE_SECONDS,
    screen: Screen | None = None,
) -> dict[str, Any]:
    """What a run with these settings would cost; nothing is written into its directory.

    Args:
        config: of the run, whose directory need not exist.
        quick: tokenise a sample of the pool only, and let it speak for all rows.
        tokens_per_second: of gradients, on the machine that the run is for; measured on this one without it.
        probe_seconds: how long the speed is measured.
        screen: where progress is shown.

    Returns:
        What is `auto` as it is `decided` for the job; `steps` and `total` as a run's summary.json has them,
        with the disk that they leave; the same totals for every method that the settings allow (`methods`)
        and for this one without a budget (`full`). Docs: docs/plan.md.

    Raises:
        ClusterUCBError: what the run itself would refuse.
    """
    screen = screen or Screen(quiet=True)
    with TemporaryDirectory(prefix="clusterucb-plan-") as scratch:
        there = config.with_absolute_paths().model_copy(update={"out": scratch})
        bars = Screen(quiet=True)  # says nothing of a directory that is gone in a moment
        bars.track = screen.track  # type: ignore[method-assign]
        session = Session(there, bars)
        facts = read_facts(session, quick=quick)
        if tokens_per_second is None:
            screen.say(f"load {config.model}")
            speed = probe(session, facts, probe_seconds)
        else:
            speed = Speed.given(tokens_per_second)

    def steps_of(settings: Config) -> dict[str, dict[str, Any]]:
        wider = facts.stored_dim(settings) / facts.stored_dim(session.config)  # by which a pair takes time
        pairs = wider * settings.clustering.k * facts.rows * settings.clustering.iterations
        return {name: _step(step, speed, pairs) for name, step in planned_steps(settings, facts).items()}

    method, before, steps = session.method, kept_before(facts), steps_of(session.config)
    total = _total(steps, before)
    others = {name: other for name in PRESETS if (other := _as(name, config, facts.job)) is not None}
    totals = {name: _total(steps_of(other), before) for name, other in others.items()}
    found = {
        "method": method.name,
        "bandit": method.bandit,
        "rows": facts.rows,
        "excluded": facts.excluded,
        "exact": facts.exact,
        "decided": [one._asdict() for one in session.decided],
        "steps": steps,
        "total": total,
    }
    if method.takes_gradients:
        found["full"] = {"method": method.name, **_full(totals[method.name], total)}
    disk = {**before, "while training": 2 * facts.sizes.checkpoint}
    return {**found, "methods": totals, "disk": disk, "speed": asdict(speed)}


def _step(step: Planned, speed: Speed, pairs: float) -> dict[str, Any]:
    seconds = _seconds(step, speed, pairs)
    cost = replace(step.cost, seconds=seconds or 0.0).to_json()
    if seconds is None:
        cost["seconds"] = None
    return {**cost, "expected": step.expected, "disk": step.disk}


def _seconds(step: Planned, speed: Speed, pairs: float) -> float | None:
    if step.work == "none":
        return 0.0
    if step.work == "clustering":
        return pairs / speed.clustering if speed.clustering else None
    rate: float = getattr(speed, step.work)
    return step.cost.tokens / rate


def _total(steps: Mapping[str, Mapping[str, Any]], before: Mapping[str, int]) -> dict[str, Any]:
    """The sum; steps of unknown time are left out of its seconds."""
    total = Cost(**{key: sum(step[key] or 0 for step in steps.values()) for key in Cost().to_json()})
    disk = sum(before.values()) + sum(step["disk"] for step in steps.values())
    return {**total.to_json(), "gradient_equivalents": total.gradient_equivalents, "disk": disk}


def _as(name: str, config: Config, job: Job) -> Config | None:
    """The settings of another method, decided for the job, or none if they contradict each other."""
    try:
        return decide(PRESETS[name].config(config, config.repeat, Path(config.out)), job)[0]
    except ConfigError:
        return None


def _full(full: dict[str, Any], total: dict[str, Any]) -> dict[str, Any]:
    """What a method takes without a budget, and the share of that which is computed."""
    return {
        **full,
        "share_of_pool_gradients": total["pool_gradients"] / full["pool_gradients"],
        "share_of_cost": total["gradient_equivalents"] / full["gradient_equivalents"],
    }
