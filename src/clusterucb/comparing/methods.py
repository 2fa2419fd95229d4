"""The methods that can be compared: each is a name for a few settings of a run."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clusterucb.config import Config
from clusterucb.errors import ConfigError

__all__ = ["DEFAULT", "METHODS", "Method", "methods_named", "neutral", "repetitions"]


@dataclass(frozen=True)
class Method:
    """One method of a comparison.

    Attributes:
        name: as a person gives it, and of its folder.
        method, bandit, features, perplexity: the settings that make a run one of this method.
        policy: the same; that of the comparison's settings, if there is none.
        draws: the first selection depends on the repetition; without, it is the same rows in each.
    """

    name: str
    method: str
    bandit: str = "clusterucb"
    features: str = "gradients"
    perplexity: str = "highest"
    policy: str | None = None
    draws: bool = False

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
    """The methods of these names (or of one text with commas), in the order of `METHODS`.

    Raises:
        ConfigError: there is no method of such a name, or none is named.
    """
    parts = names.split(",") if isinstance(names, str) else names
    wanted = {name for part in parts if (name := part.strip())}
    for name in sorted(wanted - METHODS.keys()):
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"the methods are {', '.join(METHODS)}"
        raise ConfigError(f"--methods {name}: there is no such method; {hint}")
    if not wanted:
        raise ConfigError(f"--methods names none; the methods are {', '.join(METHODS)}")
    return [method for name, method in METHODS.items() if name in wanted]


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
