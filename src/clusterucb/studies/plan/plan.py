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
from clusterucb.run.methods import Method, method_of, number_of_clusters
from clusterucb.run.presets import PRESETS
from clusterucb.run.session import Session
from clusterucb.runtime.screen import Advance, Screen
from clusterucb.studies.plan.facts import Facts, read_facts
from clusterucb.studies.plan.probe import Speed, given_speed, probe
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
        `steps` and `total` as a run's summary.json has them, with the disk that they leave; the same totals
        for every method that the settings allow (`methods`) and for this one without a budget (`full`).
        Docs: docs/plan.md.

    Raises:
        ClusterUCBError: what the run itself would refuse.
    """
    screen = screen or Screen(quiet=True)
    with TemporaryDirectory(prefix="clusterucb-plan-") as scratch:
        there = config.with_absolute_paths().model_copy(update={"out": scratch})
        session = Session(there, _TracksOnly(screen))
        facts = read_facts(session, quick=quick)
        if tokens_per_second is not None:
            speed = given_speed(tokens_per_second)
        else:
            screen.say(f"load {config.model}")
            speed = probe(session, facts, probe_seconds)

    method, before = method_of(config), kept_before(facts)
    pair_width = facts.stored_dim(config)
    steps = _steps(config, facts, speed, pair_width)
    total = _total(steps, before)
    totals = {
        name: _total(_steps(other, facts, speed, pair_width), before)
        for name in PRESETS
        if (other := _as(name, config)) is not None
    }
    return {
        "method": method.name,
        "bandit": method.bandit,
        "rows": facts.rows,
        "excluded": facts.excluded,
        "exact": facts.exact,
        "steps": steps,
        "total": total,
        **_against_full(method, total, totals),
        "methods": totals,
        "disk": {**before, "while training": 2 * facts.sizes.checkpoint},
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


def _steps(config: Config, facts: Facts, speed: Speed, pair_width: int) -> dict[str, dict[str, Any]]:
    """Every step as JSON; its seconds are None where no speed is known.

    `pair_width`: dimensions of the features that the speed of k-means is for; a pair takes time by them.
    """
    wider = facts.stored_dim(config) / pair_width
    pairs = wider * number_of_clusters(config, facts.rows) * facts.rows * config.clustering.iterations
    return {name: _step(step, speed, pairs) for name, step in planned_steps(config, facts).items()}


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


def _as(name: str, config: Config) -> Config | None:
    """The settings of another method, or none if they contradict each other."""
    try:
        return PRESETS[name].config(config, config.repeat, Path(config.out))
    except ConfigError:
        return None


def _against_full(method: Method, total: dict[str, Any], totals: dict[str, Any]) -> dict[str, Any]:
    """This method without a budget, and the share of its gradients, and of its cost, that are computed."""
    if not method.takes_gradients:
        return {}
    full = totals[method.name]
    shares = {
        "share_of_pool_gradients": total["pool_gradients"] / full["pool_gradients"],
        "share_of_cost": total["gradient_equivalents"] / full["gradient_equivalents"],
    }
    return {"full": {"method": method.name, **full, **shares}}
