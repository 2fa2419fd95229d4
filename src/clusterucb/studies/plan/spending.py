"""What each step of a run will spend, by the same names as in summary.json.

Exact where a step's rows are known before it runs. Which rows a selection takes is not: their tokens are then
an expectation, those of as many rows drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from clusterucb.config import Config
from clusterucb.features.encoding import ENCODINGS
from clusterucb.run.costs import Cost
from clusterucb.run.directory import numbered
from clusterucb.run.session import number_of_clusters
from clusterucb.selection.share import share
from clusterucb.steps.train import random_rows
from clusterucb.studies.plan.facts import Facts
from clusterucb.studies.plan.sizes import FLOAT, Sizes

Work = Literal["training", "gradients", "forward", "clustering", "none"]


@dataclass(frozen=True)
class Planned:
    """One step.

    Attributes:
        cost: all counts; no seconds.
        work: what its time goes into; `none` is over in a moment.
        expected: its tokens are an expectation.
        disk: bytes that it leaves, without files of a few kilobytes.
    """

    cost: Cost
    work: Work = "none"
    expected: bool = False
    disk: int = 0


def planned_steps(config: Config, facts: Facts, sizes: Sizes) -> dict[str, Planned]:
    """Every step of a run, in order."""
    methods = {"dynamic": _dynamic, "less": _less}
    found = dict(methods.get(config.method, _baseline)(config, facts, sizes))
    return {**found, "train": _train(config, facts, sizes), "evaluate": _evaluate(config, facts)}


def kept_before(facts: Facts, sizes: Sizes) -> dict[str, int]:
    """Bytes that a run keeps besides its steps' results: the pool's tokens, the adapter before training."""
    mean = max(facts.gradient_lengths.mean(), facts.training_lengths.mean())
    tokens = 5 * round(facts.rows * float(mean))  # an int32 and a label
    return {"pool": tokens + 16 * facts.rows, "initial": sizes.adapter}


def stored_dim(config: Config, hidden: int) -> int:
    """Dimensions of a stored feature, with a model whose hidden states have `hidden` numbers."""
    return hidden if config.clustering.features == "hidden" else config.gradients.dim


def _dynamic(config: Config, facts: Facts, sizes: Sizes) -> Iterator[tuple[str, Planned]]:
    settings = config.training
    rows = config.warmup.warmup_steps * settings.batch_size
    tokens = _random_tokens(config, facts, rows)
    yield "warmup", Planned(Cost(rows, tokens), "training", not facts.exact, sizes.checkpoint)
    hidden = config.clustering.features == "hidden"
    yield "gradients", _hidden_states(config, facts, sizes) if hidden else _gradients(config, facts)
    if config.budgeted:
        yield "cluster", _cluster(config, facts, sizes)
    yield "select 1", _select(config, facts, checkpoints=1) if hidden else Planned(Cost(facts.rows))
    for period in range(2, settings.periods + 1):
        yield f"select {period}", _select(config, facts, checkpoints=1)


def _less(config: Config, facts: Facts, sizes: Sizes) -> Iterator[tuple[str, Planned]]:
    numbers = config.checkpoints
    rows = max(1, share(config.less.less_warmup, facts.rows))
    tokens = _random_tokens(config, facts, rows)
    for number in numbers:
        epoch = Planned(Cost(rows, tokens), "training", not facts.exact, sizes.checkpoint)
        yield numbered("warmup", number, " "), epoch
    for number in numbers:
        if number == 1 or not config.budgeted:
            yield numbered("gradients", number, " "), _gradients(config, facts)
    if config.budgeted:
        yield "cluster", _cluster(config, facts, sizes)
    if config.budgeted and len(numbers) > 1:
        yield "select 1", _select(config, facts, checkpoints=len(numbers) - 1)
    else:
        yield "select 1", Planned(Cost(facts.rows))


def _baseline(config: Config, facts: Facts, _sizes: Sizes) -> Iterator[tuple[str, Planned]]:
    rows, tokens = facts.rows, facts.gradient_tokens(facts.rows)
    if config.method in ("random", "bm25"):
        yield "select 1", Planned(Cost(rows if config.method == "bm25" else 0))
        return
    if config.method == "rds":
        tokens += int(facts.target_lengths.sum())
    yield "select 1", Planned(Cost(rows, tokens, pool_forwards=rows), "forward", not facts.exact)


def _gradients(config: Config, facts: Facts) -> Planned:
    """Features of all rows at one checkpoint, and the target's directions there."""
    pool = Cost(facts.rows, facts.gradient_tokens(facts.rows), facts.rows)
    disk = _store(config, facts, config.gradients.dim)
    return Planned(pool + _target(facts), "gradients", not facts.exact, disk)


def _hidden_states(config: Config, facts: Facts, sizes: Sizes) -> Planned:
    """The same of hidden states: forward passes alone."""
    tokens = facts.gradient_tokens(facts.rows) + int(facts.target_lengths.sum())
    cost = Cost(facts.rows, tokens, pool_forwards=facts.rows)
    return Planned(cost, "forward", not facts.exact, _store(config, facts, sizes.hidden))


def _store(config: Config, facts: Facts, dim: int) -> int:
    """Bytes of features with their losses and flags, and of directions."""
    row = ENCODINGS[config.gradients.store_dtype].width(dim) + FLOAT + 1
    return facts.rows * row + _directions(facts, dim)


def _cluster(config: Config, facts: Facts, sizes: Sizes) -> Planned:
    dim = stored_dim(config, sizes.hidden)
    disk = 8 * facts.rows + FLOAT * number_of_clusters(config, facts.rows) * dim
    return Planned(Cost(facts.rows), "clustering", disk=disk)


def _select(config: Config, facts: Facts, checkpoints: int) -> Planned:
    """A selection by fresh gradients at so many checkpoints, of the budget's rows or of all."""
    rows = share(config.selection.cap, facts.rows) if config.budgeted else facts.rows
    tokens = facts.gradient_tokens(rows)
    cost = Cost(*(checkpoints * count for count in (rows, tokens, rows)))
    for _ in range(checkpoints):
        cost += _target(facts)
    disk = checkpoints * _directions(facts, config.gradients.dim) if config.method == "less" else 0
    return Planned(cost, "gradients", rows < facts.rows or not facts.exact, disk)


def _train(config: Config, facts: Facts, sizes: Sizes) -> Planned:
    settings, rows = config.training, share(config.selection.top_p, facts.rows)
    trained = settings.periods * settings.epochs_per_period * rows
    known = rows == facts.rows and facts.exact
    return Planned(Cost(trained, facts.training_tokens(trained)), "training", not known, sizes.checkpoint)


def _evaluate(config: Config, facts: Facts) -> Planned:
    """The loss of the base, and of the adapter at the end of each period."""
    rows, tokens = len(facts.evaluated_lengths), int(facts.evaluated_lengths.sum())
    times = 1 + config.training.periods
    return Planned(Cost(times * rows, times * tokens), "forward")


def _random_tokens(config: Config, facts: Facts, rows: int) -> int:
    """Tokens of a warmup's rows: of those that the seed draws, where their lengths are known."""
    return facts.training_tokens(random_rows(facts.rows, rows, config.seed) if facts.exact else rows)


def _target(facts: Facts) -> Cost:
    return Cost(tokens=int(facts.target_lengths.sum()), target_gradients=len(facts.target_lengths))


def _directions(facts: Facts, dim: int) -> int:
    return FLOAT * facts.subtasks * dim
