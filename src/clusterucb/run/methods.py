"""The methods, each a value: what its selection takes, and when it is made.

Everything that depends on how rows are selected asks this value; nothing compares names of methods.
"""

from __future__ import annotations

from dataclasses import dataclass

from clusterucb.config import Config
from clusterucb.errors import ConfigError
from clusterucb.selection.budget import Budget


@dataclass(frozen=True)
class Method:
    """One way to select rows.

    Attributes:
        name: as the setting `method` has it.
        checkpoints: epochs of the warmup, each with a checkpoint after it; 0 where no gradient is taken.
        stored: at so many of these, from the first on, features of all rows are kept.
        features: what they are of: gradients, those of the upper half of the layers (top), by a forward pass
            each hidden states or the head, or words.
        budgeted: a bandit decides whose gradients are computed after that.
        reselects: rows are selected anew at the start of every period; otherwise once for all.
        static: they could be, but the first selection serves all periods.
    """

    name: str
    checkpoints: int = 0
    stored: int = 0
    features: str = "gradients"
    budgeted: bool = False
    reselects: bool = False
    static: bool = False

    @property
    def by_likeness(self) -> bool:
        """Whether the features take no gradient, and so are none that fresh ones could be compared with."""
        return self.features in ("words", "hidden", "head")

    @property
    def top(self) -> bool:
        """Whether gradients are of the upper half of the layers."""
        return self.features == "top"

    @property
    def compares(self) -> str:
        """What the features are of, in words."""
        upper, head = "gradients of the upper layers", "gradients of the head"
        return {"top": upper, "hidden": "hidden states", "head": head}.get(self.features, self.features)

    @property
    def words(self) -> bool:
        """Whether the features are of words, at no checkpoint and of no model."""
        return self.features == "words"

    @property
    def once(self) -> bool:
        """Whether one selection serves all periods, whatever the pool has."""
        return self.static or not self.reselects

    @property
    def takes_gradients(self) -> bool:
        """Whether gradients of pool rows decide."""
        return self.budgeted or self.checkpoints > 0

    @property
    def numbers(self) -> range:
        """Numbers of the warmup's checkpoints, from 1."""
        return range(1, self.checkpoints + 1)

    @property
    def ranks_stored(self) -> bool:
        """Whether the first selection ranks what is stored of all rows, without a gradient more."""
        if self.by_likeness:
            return not self.checkpoints  # at which it would draw
        return self.takes_gradients and self.stored == self.checkpoints

    @property
    def bandit(self) -> str:
        """As the setting `bandit` has it."""
        return "clusterucb" if self.budgeted else "none"

    def rounds(self, periods: int) -> range:
        """Numbers of the selections in a training of so many periods, from 1."""
        return range(1, (1 if self.once else periods) + 1)

    def full(self, periods: int) -> int:
        """How often scoring every row takes the gradients of all rows; 0 where none are taken."""
        return periods if self.reselects else self.checkpoints


def budget_of(config: Config) -> Budget:
    """How much of the pool the settings let a selection look at: all of it without a bandit.

    Raises:
        ConfigError: its shares contradict each other.
    """
    chosen = config.selection
    if not method_of(config).budgeted:
        return Budget(1.0, top_p=chosen.top_p)
    if config.in_turns and chosen.cap < chosen.top_p:
        raise ConfigError(
            f"budget {chosen.cap} is below top_p {chosen.top_p}: only rows that were drawn are taken in "
            "turn; raise budget or lower top_p"
        )
    return Budget(chosen.cap, chosen.csp, chosen.top_p, by_row=chosen.by_row)


def method_of(config: Config) -> Method:
    """The method that the settings name."""
    bandit = config.bandit == "clusterucb"
    if config.method == "dynamic":
        static, kind = config.selection.keep == "static", config.features
        warms_up = static or kind != "words"  # which tell enough of the first period alone
        return Method("dynamic", int(warms_up), 1, kind, budgeted=bandit, reselects=True, static=static)
    if config.method == "less":
        epochs = config.less.less_checkpoints
        return Method("less", epochs, 1 if bandit else epochs, config.features, budgeted=bandit)
    return Method(config.method)
