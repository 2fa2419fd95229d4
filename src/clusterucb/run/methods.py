"""The methods that can be compared: each is a name for a few settings of a run.

`linear_ucb@0.05` is linear_ucb at a budget of its own, whatever that of the settings is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clusterucb.config import Config
from clusterucb.errors import ConfigError


@dataclass(frozen=True)
class Method:
    """One method of a comparison.

    Attributes:
        name: as a person gives it, and of its folder.
        method, bandit, features, perplexity: the settings that make a run one of this method.
        policy: the same; that of the comparison's settings, if there is none.
        draws: the first selection depends on the repetition; without, it is the same rows in each.
        budget: the same as `policy`, for the share of the rows whose gradients a selection may take.
    """

    name: str
    method: str
    bandit: str = "clusterucb"
    features: str = "gradients"
    perplexity: str = "highest"
    policy: str | None = None
    draws: bool = False
    budget: float | None = None

    @property
    def budgeted(self) -> bool:
        """Whether a budget is of any use to it."""
        return self.method in ("dynamic", "less") and self.bandit == "clusterucb"

    def at(self, budget: float) -> Method:
        """The same at this budget."""
        return replace(self, name=f"{self.name}@{budget:g}", budget=budget)

    def config(self, config: Config, repeat: int, out: Path) -> Config:
        """The settings of one run of this method, all others as in `config`.

        Raises:
            ConfigError: they contradict each other.
        """
        tree = config.model_dump()
        tree |= {"method": self.method, "bandit": self.bandit, "repeat": repeat, "out": str(out)}
        tree["baselines"]["perplexity"] = self.perplexity
        tree["clustering"]["features"] = self.features
        tree["selection"]["policy"] = self.policy or config.selection.policy
        tree["selection"]["budget"] = self.budget or config.selection.budget
        return Config.model_validate(tree)


METHODS = {
    method.name: method
    for method in (
        Method("clusterucb", "dynamic"),
        Method("clusterucb_hidden", "dynamic", features="hidden", draws=True),
        Method("linear_ucb", "dynamic", policy="linear_ucb"),
        Method("linear_ucb_hidden", "dynamic", features="hidden", policy="linear_ucb", draws=True),
        Method("dynamic", "dynamic", bandit="none"),
        Method("less_clusterucb", "less", draws=True),
        Method("less", "less", bandit="none"),
        Method("rds", "rds"),
        Method("bm25", "bm25"),
        Method("loss_highest", "loss"),
        Method("loss_lowest", "loss", perplexity="lowest"),
        Method("random", "random", draws=True),
    )
}
"""By name, in the order of every table."""

DEFAULT = ("clusterucb", "dynamic", "less", "rds", "bm25", "random")


def methods_named(names: str | Sequence[str]) -> list[Method]:
    """The methods of these names (or of one text with commas), in the order of `METHODS` and by budget.

    Raises:
        ConfigError: there is no method of such a name, or none is named.
    """
    parts = names.split(",") if isinstance(names, str) else names
    wanted = {method_named(name) for part in parts if (name := part.strip())}
    if not wanted:
        raise ConfigError(f"--methods names none; the methods are {', '.join(METHODS)}")
    return in_order(wanted)


def in_order(methods: Iterable[Method]) -> list[Method]:
    """As every table has them: in the order of `METHODS`, the settings' budget before others."""
    places = {name: place for place, name in enumerate(METHODS)}
    return sorted(methods, key=lambda method: (places[method.name.split("@")[0]], method.budget or 0.0))


def method_named(name: str) -> Method:
    """The method of this name, `METHOD` or `METHOD@BUDGET`.

    Raises:
        ConfigError: there is none.
    """
    base, at, budget = name.partition("@")
    if base not in METHODS:
        near = difflib.get_close_matches(base, METHODS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"the methods are {', '.join(METHODS)}"
        raise ConfigError(f"--methods {name}: there is no such method; {hint}")
    if not at:
        return METHODS[base]
    if not METHODS[base].budgeted:
        raise ConfigError(f"--methods {name}: {base} has no budget; write {base}")
    try:
        share = float(budget)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ConfigError(f"--methods {name}: expected a budget above 0 and at most 1, as in {base}@0.1")
    return METHODS[base].at(share)


def repetitions(seeds: str | int) -> int:
    """How often each method is run.

    Raises:
        ConfigError: not a whole number from 1 on.
    """
    if not str(seeds).isdecimal() or int(seeds) < 1:
        raise ConfigError(f"--seeds {seeds}: expected how often each method is run, a whole number from 1 on")
    return int(seeds)


def neutral(config: Config) -> Config:
    """`config` without what each run of a comparison sets for itself."""
    baselines = config.baselines.model_copy(update={"perplexity": "highest"})
    clustering = config.clustering.model_copy(update={"features": "gradients"})
    own = {"method": "dynamic", "bandit": "clusterucb", "repeat": 0}
    own |= {"baselines": baselines, "clustering": clustering}
    return config.model_copy(update=own)
