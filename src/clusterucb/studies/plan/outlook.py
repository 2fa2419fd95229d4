"""What any settings over the same inputs would take on a machine whose speed is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

from clusterucb.config import Config
from clusterucb.run.costs import Cost, bill
from clusterucb.run.methods import method_of
from clusterucb.run.session import Session
from clusterucb.run.sizing import Decided
from clusterucb.runtime.screen import Screen
from clusterucb.steps.summary import before
from clusterucb.studies.plan.facts import Facts, read_facts
from clusterucb.studies.plan.probe import Speed, probe
from clusterucb.studies.plan.spending import Planned, planned_steps

PROBE_SECONDS = 20.0


@dataclass(frozen=True)
class Outlook:
    """Facts of the inputs, and the speed of the machine, found with some settings.

    Attributes:
        config: these settings, decided; others may differ in how rows are selected and trained on.
        decided: what of them was `auto`.
        facts: of the inputs.
        speed: of the machine, which tells the seconds.
    """

    config: Config
    decided: list[Decided]
    facts: Facts
    speed: Speed

    def steps(self, config: Config) -> dict[str, Planned]:
        """Every step of a run with these settings, its seconds in its cost; 0 where they are not known."""
        return {
            name: replace(step, cost=replace(step.cost, seconds=self.seconds(step, config) or 0.0))
            for name, step in planned_steps(config, self.facts).items()
        }

    def seconds(self, step: Planned, config: Config) -> float | None:
        """How long a step takes; None if the speed of its work is not known."""
        if step.work == "none":
            return 0.0
        if step.work != "clustering":
            return step.cost.tokens / float(getattr(self.speed, step.work))
        wider = self.facts.stored_dim(config) / self.facts.stored_dim(self.config)  # in a pair's time
        pairs = wider * config.clustering.k * self.facts.rows * config.clustering.iterations
        return pairs / self.speed.clustering if self.speed.clustering else None

    def bill(self, config: Config, steps: Mapping[str, Planned]) -> dict[str, Any]:
        """Of all steps."""
        times = method_of(config).full(config.training.periods)
        costs: dict[str, Cost] = {name: step.cost for name, step in steps.items()}
        return bill(costs, self.facts.work(times))

    def remarks(self, config: Config) -> list[str]:
        """What there is to say before a run with these settings."""
        facts = self.facts
        held_out = len(facts.evaluated_lengths) if config.holdout else 0
        target = len(facts.target_lengths)
        return [*before(config, facts.rows, target, held_out, facts.repeats).remarks()]


def look(
    config: Config,
    screen: Screen,
    *,
    quick: bool = False,
    tokens_per_second: float | None = None,
    probe_seconds: float = PROBE_SECONDS,
) -> Outlook:
    """Read a run's inputs as `plan` does, and measure the speed unless it is given."""
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
        settled = session.config.model_copy(update={"out": config.out})
        return Outlook(settled, session.decided, facts, speed)
