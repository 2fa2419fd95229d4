"""Names for settings of a run: published procedures (`--preset`), and the methods that `compare` and `plan`
set side by side.

`linear_ucb@0.05` is linear_ucb at a budget of its own, whatever that of the settings is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clusterucb.config import Config
from clusterucb.errors import ConfigError, did_you_mean
from clusterucb.run.methods import method_of

_OF_BOTH = {
    **{"rank": 128, "alpha": 512, "dropout": 0.1, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    **{"gradient_length": 2048, "formula": "less", "dim": 8192, "top_p": 0.05, "periods": 4},
    **{"epochs_per_period": 1, "lr": 2e-5, "lr_warmup": 0.03, "weight_decay": 0.0, "batch_size": 128},
}

PROCEDURES: dict[str, dict[str, Any]] = {
    "paper": {
        **{"method": "dynamic", "bandit": "clusterucb", "features": "gradients", "iterations": 20},
        **{"centre": False, "aim": "mean", "keep": "now"},
        **{"policy": "ucb_beta", "beta": 1.0, "csp": 0.02, "budget": 0.2, "draw_batch": 8},
        **{"draw_batch_arms": "one", "draw_order": "uniform", "warmup_steps": 20},
        **{"target_length": 1400, "train_length": 4096},
        **_OF_BOTH,
    },
    "less": {
        **{"method": "less", "bandit": "none", "less_warmup": 0.05, "less_checkpoints": 4},
        **{"aim": "mean", "less_weights": [], "projection": "rademacher"},
        **{"target_length": 2048, "train_length": 2048},
        **_OF_BOTH,
    },
}
"""Settings by their names, as published: of ClusterUCB (arXiv 2506.10288), which gives neither k nor how many
rows are drawn at once (its code draws one), and of LESS (arXiv 2402.04333). Both are for Llama-2-7B."""

Settings = Mapping[str, str | bool]
"""Of a run, by their names."""

NEUTRAL: Settings = {
    "method": "dynamic",
    "bandit": "clusterucb",
    "features": "gradients",
    "centre": True,
    "perplexity": "highest",
}
"""What every method sets, unless it says otherwise; `neutral_settings` has its policy."""


@dataclass(frozen=True)
class Preset:
    """A name for a few settings.

    Attributes:
        name: as a person gives it, and of its folder in a comparison.
        settings: by their names; all others are as in the settings that it is put over.
        budget: a budget of its own.
    """

    name: str
    settings: Settings
    budget: float | None = None

    def at(self, budget: float) -> Preset:
        """The same at this budget."""
        return replace(self, name=f"{self.name}@{budget:g}", budget=budget)

    def config(self, config: Config, repeat: int, out: Path) -> Config:
        """The settings of one run, all others as in `config`.

        Raises:
            ConfigError: they contradict each other.
        """
        own = {**neutral_settings(config), **self.settings, "repeat": repeat, "out": str(out)}
        return config.with_settings(own if self.budget is None else {**own, "budget": self.budget})


_SETTINGS: dict[str, Settings] = {
    "clusterucb": {"centre": False},
    "clusterucb_hidden": {"features": "hidden"},
    "linear_ucb": {"policy": "linear_ucb"},
    "linear_ucb_hidden": {"features": "hidden", "policy": "linear_ucb"},
    "linear_ucb_words": {"features": "words", "policy": "linear_ucb"},
    "cluster_less": {"features": "hidden", "policy": "cluster_less"},
    "landmarks": {"features": "hidden", "policy": "landmarks"},
    "dynamic": {"bandit": "none"},
    "less_clusterucb": {"method": "less", "centre": False},
    "less": {"method": "less", "bandit": "none"},
    "rds": {"method": "rds"},
    "head": {"method": "head"},
    "bm25": {"method": "bm25"},
    "loss_highest": {"method": "loss"},
    "loss_lowest": {"method": "loss", "perplexity": "lowest"},
    "random": {"method": "random"},
}
PRESETS = {name: Preset(name, settings) for name, settings in _SETTINGS.items()}
"""By name, in the order of every table."""

DEFAULT = ("clusterucb", "linear_ucb_words", "dynamic", "less", "rds", "bm25", "random")


def presets_named(names: str | Sequence[str]) -> list[Preset]:
    """The presets of these names (or of one text with commas), in the order of `PRESETS` and by budget.

    Raises:
        ConfigError: there is no method of such a name, or none is named.
    """
    parts = names.split(",") if isinstance(names, str) else names
    wanted = {name: preset_named(name) for part in parts if (name := part.strip())}
    if not wanted:
        raise ConfigError(f"--methods names none; the methods are {', '.join(PRESETS)}")
    return in_order({preset.name: preset for preset in wanted.values()}.values())


def in_order(presets: Iterable[Preset]) -> list[Preset]:
    """As every table has them: in the order of `PRESETS`, the settings' budget before others."""
    places = {name: place for place, name in enumerate(PRESETS)}
    return sorted(presets, key=lambda preset: (places[preset.name.split("@")[0]], preset.budget or 0.0))


def preset_named(name: str) -> Preset:
    """The preset of this name, `METHOD` or `METHOD@BUDGET`.

    Raises:
        ConfigError: there is none.
    """
    base, at, budget = name.partition("@")
    if base not in PRESETS:
        hint = did_you_mean(base, PRESETS, "the methods are")
        raise ConfigError(f"--methods {name}: there is no such method; {hint}")
    preset = PRESETS[base]
    if not at:
        return preset
    if preset.settings.get("bandit") == "none" or preset.settings.get("method", "less") != "less":
        raise ConfigError(f"--methods {name}: {base} has no budget; write {base}")
    try:
        share = float(budget)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ConfigError(f"--methods {name}: expected a budget above 0 and at most 1, as in {base}@0.1")
    return preset.at(share)


def repetitions(seeds: str | int) -> int:
    """How often each method is run.

    Raises:
        ConfigError: not a whole number from 1 on.
    """
    if not str(seeds).isdecimal() or int(seeds) < 1:
        raise ConfigError(f"--seeds {seeds}: expected how often each method is run, a whole number from 1 on")
    return int(seeds)


def procedure_named(name: str) -> dict[str, Any]:
    """The settings of a published procedure. Raises ConfigError if there is none of this name."""
    if name not in PROCEDURES:
        hint = did_you_mean(name, PROCEDURES, "they are")
        raise ConfigError(f"--preset {name}: there is no such preset; {hint}")
    return PROCEDURES[name]


def neutral_settings(config: Config) -> Settings:
    """What every method sets, unless it says otherwise: a policy by clusters, the paper's if none is."""
    return {**NEUTRAL, **({"policy": "ucb_beta"} if config.selection.by_row else {})}


def neutral(config: Config) -> Config:
    """`config` without what each run of a comparison sets for itself."""
    return config.with_settings({**neutral_settings(config), "repeat": 0})


def draws_first(config: Config) -> bool:
    """Whether the first selection depends on the repetition; otherwise it is the same rows in each."""
    method = method_of(config)
    return method.name == "random" or (method.takes_gradients and not method.ranks_stored)
