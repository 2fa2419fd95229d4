"""A run's cost before anything runs: `plan(config)`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clusterucb.config import Config
from clusterucb.errors import ConfigError
from clusterucb.run.costs import Cost
from clusterucb.run.presets import PRESETS
from clusterucb.run.session import Session, number_of_clusters
from clusterucb.runtime.screen import Advance, Screen
from clusterucb.studies.plan.facts import read_facts
from clusterucb.studies.plan.memory import memory
from clusterucb.studies.plan.probe import Activations, Speed, given_speed, probe
from clusterucb.studies.plan.sizes import model_sizes
from clusterucb.studies.plan.spending import Planned, kept_before, planned_steps, stored_dim

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
        `steps` and `total` as a run's summary.json has them, with the disk that they leave; the same totals
        for every method that the settings allow (`methods`) and for this one without a budget (`full`);
        `memory` in bytes by stage and part. Docs: docs/plan.md.

    Raises:
        ClusterUCBError: what the run itself would refuse.
    """
    screen = screen or Screen(quiet=True)
    with TemporaryDirectory(prefix="clusterucb-plan-") as scratch:
        there = config.with_absolute_paths().model_copy(update={"out": scratch})
        session = Session(there, _TracksOnly(screen))
        facts = read_facts(session, quick=quick)
        sizes = model_sizes(session.config)
        activations: Activations | None = None
        if tokens_per_second is not None:
            speed = given_speed(tokens_per_second)
        else:
            screen.say(f"load {config.model}")
            speed, activations = probe(session, facts, probe_seconds)

    measured_dim = stored_dim(config, sizes.hidden)

    def steps_of(config: Config) -> dict[str, dict[str, Any]]:
        wider = stored_dim(config, sizes.hidden) / measured_dim  # a pair takes time by its dimensions
        pairs = wider * number_of_clusters(config, facts.rows) * facts.rows * config.clustering.iterations
        planned = planned_steps(config, facts, sizes)
        return {name: _step(step, speed, pairs) for name, step in planned.items()}

    before = kept_before(facts, sizes)
    totals = {
        name: _total(steps_of(other), before)
        for name, method in PRESETS.items()
        if (other := _as(method.name, config)) is not None
    }
    steps = steps_of(config)
    stages = memory(config, facts, sizes, activations)
    total = _total(steps, before)
    return {
        "method": config.method,
        "bandit": config.bandit if config.budgeted else "none",
        "rows": facts.rows,
        "excluded": facts.excluded,
        "exact": facts.exact,
        "steps": steps,
        "total": total,
        **_against_full(config, total, totals),
        "methods": totals,
        "disk": {**before, "while training": 2 * sizes.checkpoint},
        "memory": {**stages, "peak": _peak(stages)},
        "activations_measured": activations is not None,
        "speed": asdict(speed),
    }


class _TracksOnly(Screen):
    """Shows progress on another screen, and says nothing of a directory that is gone in a moment."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(quiet=True)
        self._shown_on = screen

    @contextmanager
    def track(self, label: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """On the other screen."""
        with self._shown_on.track(label, total, unit, done) as advance:
            yield advance


def _step(step: Planned, speed: Speed, pairs: float) -> dict[str, Any]:
    """As JSON; seconds are None where no speed is known."""
    rates = {"training": speed.training, "gradients": speed.gradients, "forward": speed.forward}
    seconds: float | None = 0.0
    if step.work == "clustering":
        seconds = pairs / speed.clustering if speed.clustering else None
    elif step.work in rates:
        seconds = step.cost.tokens / rates[step.work]
    counts = replace(step.cost, seconds=seconds or 0.0).to_json()
    return {**counts, "seconds": seconds and counts["seconds"], "expected": step.expected, "disk": step.disk}


def _total(steps: Mapping[str, Mapping[str, Any]], before: Mapping[str, int]) -> dict[str, Any]:
    """The sum; steps of unknown time are left out of its seconds."""
    counts = Cost().to_json()
    for key in counts:
        counts[key] = sum(step[key] or 0 for step in steps.values())
    equivalents = Cost.from_json(counts).gradient_equivalents
    disk = sum(before.values()) + sum(step["disk"] for step in steps.values())
    seconds = round(counts["seconds"], 3)
    return {**counts, "seconds": seconds, "gradient_equivalents": equivalents, "disk": disk}


def _as(name: str, config: Config) -> Config | None:
    """The settings of another method, or none if they contradict each other."""
    try:
        return PRESETS[name].config(config, config.repeat, Path(config.out))
    except ConfigError:
        return None


def _against_full(config: Config, total: dict[str, Any], totals: dict[str, Any]) -> dict[str, Any]:
    """This method without a budget, and the share of its gradients, and of its cost, that are computed."""
    if config.method not in ("dynamic", "less"):
        return {}
    full = totals[config.method]
    shares = {
        "share_of_pool_gradients": total["pool_gradients"] / full["pool_gradients"],
        "share_of_cost": total["gradient_equivalents"] / full["gradient_equivalents"],
    }
    return {"full": {"method": config.method, **full, **shares}}


def _peak(stages: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """The stage that takes most, and its bytes together with those that are always there."""
    always = sum(stages["always"].values())
    sums = {name: always + sum(parts.values()) for name, parts in stages.items() if name != "always"}
    largest = max(sums, key=lambda name: sums[name])
    return {"stage": largest, "bytes": sums[largest]}
