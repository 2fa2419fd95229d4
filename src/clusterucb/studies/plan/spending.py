"""What each step of a run will spend, by the same names as in summary.json, at the speed of a machine.

Exact where a step's rows are known before it runs. Which rows a selection takes is not: their tokens are then
an expectation, those of as many rows drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any, Literal

from clusterucb.config import Config
from clusterucb.features.encoding import ENCODINGS
from clusterucb.features.words import words_bytes
from clusterucb.run.costs import Cost, bill, gradient_share
from clusterucb.run.directory import numbered
from clusterucb.run.methods import Method, budget_of, method_of
from clusterucb.run.session import Session
from clusterucb.run.sizing import Decided
from clusterucb.runtime.screen import Screen
from clusterucb.steps.summary import before
from clusterucb.steps.train import random_rows, warmup_rows
from clusterucb.studies.plan.facts import FLOAT, Facts, expected_tokens, read_facts
from clusterucb.studies.plan.probe import Speed, probe

PROBE_SECONDS = 20.0
"""How long the speed is measured."""

Work = Literal["training", "gradients", "forward", "clustering", "none"]


@dataclass(frozen=True)
class Planned:
    """One step."""

    cost: Cost  # all counts; no seconds
    work: Work = "none"  # what its time goes into; `none` is over in a moment
    expected: bool = False  # its tokens are an expectation
    disk: int = 0  # bytes that it leaves, without files of a few kilobytes
    in_index: bool = False  # what needs no target of it is in the index, and costs nothing


_IN_INDEX = Planned(Cost(), in_index=True)


def planned_steps(config: Config, facts: Facts) -> dict[str, Planned]:
    """Every step of a run, in order."""
    steps = _Steps(config, facts, method_of(config), facts.in_index(config))
    selected = steps.by_gradients() if steps.method.takes_gradients else steps.by_scores()
    return {**dict(selected), "train": steps.train(), "evaluate": steps.evaluate()}


def kept_before(config: Config, facts: Facts) -> dict[str, int]:
    """Bytes that a run keeps besides its steps' results: the pool's tokens, the adapter before training."""
    if facts.in_index(config):
        return {"pool": 0, "initial": 0}
    lengths = (facts.gradient_lengths, facts.training_lengths)
    tokens = max(expected_tokens(seen, facts.rows) for seen in lengths)  # an int32 and a label each
    return {"pool": 5 * tokens + 16 * facts.rows, "initial": facts.sizes.adapter}


@dataclass(frozen=True)
class _Steps:
    """The steps of one run, each method's in order."""

    config: Config
    facts: Facts
    method: Method
    indexed: bool  # it begins at an index

    def by_gradients(self) -> Iterator[tuple[str, Planned]]:
        """Of a method that takes gradients of pool rows."""
        method = self.method
        for number in method.numbers:
            yield numbered("warmup", number, " "), self._warmup()
        for number in range(1, method.stored + 1):
            yield numbered("gradients", number, " "), self._features()
        if method.budgeted:
            yield "cluster", self._cluster()
        ranked = Planned(Cost(self.facts.rows))  # by what is stored
        fresh = max(1, method.checkpoints - method.stored)
        yield "select 1", ranked if method.ranks_stored else self._select(fresh)
        for number in method.rounds(self.config.training.periods)[1:]:
            yield f"select {number}", self._select()

    def by_scores(self) -> Iterator[tuple[str, Planned]]:
        """Of a method that takes none."""
        rows, method = self.facts.rows, self.method.name
        tokens = expected_tokens(self.facts.gradient_lengths, rows)
        if method in ("random", "bm25"):
            yield "select 1", Planned(Cost(rows if method == "bm25" else 0))
            return
        if method in ("rds", "head"):
            tokens += self._target.tokens
        yield "select 1", Planned(Cost(rows, tokens, pool_forwards=rows), "forward", not self.facts.exact)

    def train(self) -> Planned:
        settings, rows = self.config.training, budget_of(self.config).keep(self.facts.rows)
        trained = settings.periods * settings.epochs_per_period * rows
        cost = Cost(trained, expected_tokens(self.facts.training_lengths, trained))
        every_row = rows == self.facts.rows and self.facts.exact
        return Planned(cost, "training", not every_row, self.facts.sizes.checkpoint)

    def evaluate(self) -> Planned:
        """The loss of the base, and of the adapter at the end of each period."""
        lengths, times = self.facts.evaluated_lengths, 1 + self.config.training.periods
        return Planned(Cost(times * len(lengths), times * int(lengths.sum())), "forward")

    def _warmup(self) -> Planned:
        """Training on random rows; those that the seed draws, where their lengths are known."""
        if self.indexed:
            return _IN_INDEX
        facts, rows = self.facts, warmup_rows(self.config, self.facts.rows)
        tokens = expected_tokens(facts.training_lengths, rows)
        if facts.exact:
            tokens = int(facts.training_lengths[random_rows(facts.rows, rows, self.config.seed)].sum())
        return Planned(Cost(rows, tokens), "training", not facts.exact, facts.sizes.checkpoint)

    def _features(self) -> Planned:
        """Features of all rows, their losses and flags, and the target's directions, at one checkpoint."""
        rows, dim = 0 if self.indexed else self.facts.rows, self.facts.stored_dim(self.config)
        width = ENCODINGS[self.config.gradients.store_dtype].width(dim) + FLOAT + 1
        tokens = expected_tokens(self.facts.gradient_lengths, rows)
        disk, expected = rows * width + self._directions(dim), bool(rows) and not self.facts.exact
        if not self.method.by_likeness:
            cost = Cost(rows, tokens, rows) + self._target
            return Planned(cost, "gradients", expected, disk, self.indexed)
        if self.method.words:
            return Planned(Cost(rows), disk=disk + words_bytes(rows), in_index=self.indexed)
        cost = Cost(rows, tokens + self._target.tokens, pool_forwards=rows)
        return Planned(cost, "forward", expected, disk, self.indexed)

    def _cluster(self) -> Planned:
        rows, k = self.facts.rows, self.config.clustering.k
        if self.indexed and self.facts.clusters == (k, self.config.clustering.centre):
            return _IN_INDEX
        disk = 8 * rows + FLOAT * k * self.facts.stored_dim(self.config)
        return Planned(Cost(rows), "clustering", disk=disk)

    def _select(self, checkpoints: int = 1) -> Planned:
        """A selection by fresh gradients at so many checkpoints, of the budget's rows or of all."""
        config, facts = self.config, self.facts
        rows = budget_of(config).spend(facts.rows)
        once = Cost(rows, expected_tokens(facts.gradient_lengths, rows), rows) + self._target
        cost = sum([once] * checkpoints, Cost())
        disk = checkpoints * self._directions(config.gradients.dim) if not self.method.reselects else 0
        return Planned(cost, "gradients", rows < facts.rows or not facts.exact, disk)

    @property
    def _target(self) -> Cost:
        lengths = self.facts.target_lengths
        return Cost(tokens=int(lengths.sum()), target_gradients=len(lengths))

    def _directions(self, dim: int) -> int:
        of_rows = self.config.selection.aim in ("nearest", "round_robin")
        return FLOAT * (len(self.facts.target_lengths) if of_rows else self.facts.subtasks) * dim


@dataclass(frozen=True)
class Outlook:
    """Facts of the inputs, and the speed of the machine, found with some settings."""

    config: Config  # these, decided; others may differ in how rows are selected and trained on
    decided: list[Decided]  # what of them was `auto`
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
            share = gradient_share(method_of(config)) if step.work == "gradients" else 1.0
            return share * step.cost.tokens / float(getattr(self.speed, step.work))
        wider = self.facts.stored_dim(config) / self.facts.stored_dim(self.config)  # in a pair's time
        pairs = wider * config.clustering.k * self.facts.rows * config.clustering.iterations
        return pairs / self.speed.clustering if self.speed.clustering else None

    def bill(self, config: Config, steps: Mapping[str, Planned]) -> dict[str, Any]:
        """Of all steps."""
        method = method_of(config)
        times = method.full(config.training.periods)
        if self.facts.in_index(config) and not method.by_likeness:
            times -= method.stored  # as often they are there
        costs = {name: step.cost for name, step in steps.items()}
        return bill(costs, self.facts.work(times, gradient_share(method)))

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
