"""The plan that fits the time that a person has: settings made cheaper in a few steps, the least loss first.

Only how much is looked at and trained changes: what a run reads, and the method, stay. What a
person has set with an option stays, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from clusterucb.config import Config, load, settings
from clusterucb.errors import ConfigError
from clusterucb.report.bill import passes
from clusterucb.report.section import seconds
from clusterucb.run.directory import RunDir
from clusterucb.run.methods import budget_of, method_of
from clusterucb.run.sizing import lines
from clusterucb.runtime.processes import ALONE, World
from clusterucb.runtime.screen import Screen
from clusterucb.studies.plan.spending import Outlook, look

WARMUP_SHARE, WARMUP_STEPS = 0.1, 4
"""Of the pool's rows that a short warmup trains on, and its fewest steps."""
CHOSEN = {"warmup_steps", "features", "budget", "budget_cap", "periods", "epochs_per_period"}
"""All settings that a step may change."""

Settings = Mapping[str, Any]


def _steps(config: Config, rows: int) -> Iterator[tuple[Settings, str]]:
    """What is set cheaper, in this order, and what each gives up; a plan skips what saves nothing."""
    budget = "budget_cap" if config.selection.budget is None else "budget"
    warmup = max(WARMUP_STEPS, math.ceil(WARMUP_SHARE * rows / config.training.batch_size))
    yield {"warmup_steps": warmup}, "moments of Adam that a longer warmup settles"
    yield {budget: 0.1}, "the best rows among those that only a larger budget looks at"
    yield (
        {"features": "words"},
        "gradients of all rows: clusters are of words, by which alone period 1 is selected",
    )
    yield {budget: 0.05}, "more of the best rows"
    yield {"periods": 2}, "selections in between, while the model changes"
    yield {"epochs_per_period": 1}, "training on the selected rows more than once a period"
    yield {"periods": 1}, "all selections but the first"


@dataclass(frozen=True)
class Limit:
    """What a run may take, warmup, training and losses included."""

    said: str  # as a person has said it
    unit: Literal["seconds", "share"]  # of the passes that scoring all rows at every selection takes
    most: float
    kept: Collection[str] = ()  # settings that do not change

    @classmethod
    def read(cls, time: str | None, cost: str | None, kept: Collection[str] = ()) -> Limit | None:
        """`--time 1h30m` or `--cost 0.4`; None without either. Raises ConfigError for what is neither."""
        if time is not None and cost is not None:
            raise ConfigError("--time and --cost: give one of the two")
        if cost is not None:
            share = float(cost) if re.fullmatch(r"\d*\.?\d+", cost) else 0.0
            if not 0 < share <= 1:
                raise ConfigError(f"--cost {cost}: expected a share above 0 and at most 1, as 0.4")
            return cls(f"--cost {cost}", "share", share, kept)
        if time is None:
            return None
        parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", time)
        hours, minutes, rest = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
        if not (amount := 3600 * hours + 60 * minutes + rest):
            raise ConfigError(f"--time {time}: expected hours, minutes or seconds, as 30m, 1h30m or 90s")
        return cls(f"--time {time}", "seconds", amount, kept)


@dataclass(frozen=True)
class Choice:
    """A plan: settings, how they differ from those that were asked for, and what they take."""

    config: Config
    changes: Settings
    gives_up: Sequence[str]
    bill: Mapping[str, Any]  # of a run
    full: float  # passes that scoring all rows takes with the settings asked for; 0 where that is none

    def spends(self, limit: Limit) -> float:
        """What it takes, in the limit's unit."""
        spent: float = self.bill["seconds"] if limit.unit == "seconds" else self.bill["passes"] / self.full
        return spent

    def takes(self, limit: Limit) -> str:
        """The same in words."""
        if limit.unit == "seconds":
            return f"about {seconds(self.bill['seconds'])}"
        return f"{passes(self.bill)} of {passes({'passes': self.full})} passes over the pool"

    @property
    def settings(self) -> str:
        """The changes in words."""
        return ", ".join(f"{name} {value}" for name, value in self.changes.items()) or "settings as they are"

    def told(self, limit: Limit) -> Iterator[str]:
        """What is chosen, and what it gives up."""
        yield f"{limit.said}: {self.settings}; this takes {self.takes(limit)}"
        if self.gives_up:
            yield f"it gives up: {'; '.join(self.gives_up)}"


def plans(found: Outlook, kept: Collection[str] = ()) -> Iterator[Choice]:
    """The settings as they are, then ever cheaper ones; what is `kept` does not change, nor an index's."""
    config, rows = found.config, found.facts.rows
    kept = {*kept, *(setting.name for setting in settings() if config.index and setting.of_an_index)}
    changes: dict[str, Any] = {}
    lost: list[str] = []
    bill = found.bill(config, found.steps(config))
    full = (bill["score_all"] or {"passes": 0.0})["passes"]
    yield Choice(config, {}, (), bill, full)
    for change, loss in _steps(config, rows):
        if set(change) & kept or not (changed := _holding(config, change, rows)):
            continue
        cheaper = found.bill(changed, found.steps(changed))
        if cheaper["passes"] < bill["passes"]:
            config, bill, changes, lost = changed, cheaper, {**changes, **change}, [*lost, loss]
            yield Choice(config, changes, lost, bill, full)


def _holding(config: Config, change: Settings, rows: int) -> Config | None:
    """The settings with this change, if they hold for so many rows."""
    try:
        changed = config.with_settings(change)
        budget = budget_of(changed)
        budget.spend(rows)
        if method_of(changed).budgeted:
            budget.check_clusters(changed.clustering.k, rows)
    except ConfigError:
        return None
    return changed


def choose(found: Outlook, limit: Limit) -> Choice:
    """The first plan within the limit.

    Raises:
        ConfigError: none is; the nearest is named.
    """
    tried = [*plans(found, limit.kept)]
    if limit.unit == "share" and not tried[0].full:
        raise ConfigError(
            f"{limit.said}: method {found.config.method} takes no gradients, so there is no cost of scoring "
            f"all rows; leave --cost out, or give --time"
        )
    for plan in tried:
        if plan.spends(limit) <= limit.most:
            return plan
    nearest = min(tried, key=lambda plan: plan.spends(limit))
    raise ConfigError(
        f"{limit.said}: no plan fits; the nearest takes {nearest.takes(limit)} ({nearest.settings}): give "
        f"more, or fewer rows, or a shorter --gradient-length or --train-length"
    )


def fit(config: Config, limit: Limit, screen: Screen, world: World = ALONE) -> Config:
    """The settings of a run within a limit: those chosen when its directory was made, or chosen now.

    Of several processes rank 0 measures the speed, as if all were as fast.

    Raises:
        ConfigError: no plan fits.
    """

    def act() -> Config:
        saved = RunDir(config.out).config
        if saved.exists():
            earlier, free = load(saved, {"out": config.out}), CHOSEN - {*limit.kept}
            return config.with_settings({one.name: one.of(earlier) for one in settings() if one.name in free})
        given = 1.0 if limit.unit == "share" else None  # passes are the same at any speed
        found = look(config, screen, quick=True, tokens_per_second=given)
        choice = choose(replace(found, speed=found.speed.by(world.size)), limit)
        for line in (*lines(found.config, found.facts.job, found.decided), *choice.told(limit)):
            screen.say(line)
        return choice.config

    return world.lead(act)
