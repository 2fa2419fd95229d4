"""What a simulation tries: a grid of values, and policies by name, published ones and a person's own.

All of it is checked when it is made, before any store is read. numpy only.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from clusterucb.errors import ConfigError, reason
from clusterucb.selection.arms import Arms
from clusterucb.selection.budget import Budget
from clusterucb.selection.checks import check_draws, check_seed
from clusterucb.selection.policies import Policy, Random
from clusterucb.selection.selector import RowPolicy, named_policy


@dataclass(frozen=True)
class Grid:
    """Every combination is tried with every policy; the names are those of a run's settings.

    A seed decides draws and nothing else: the clusters of one k are the same for all seeds, so a spread
    over seeds is that of the draws alone.

    Attributes:
        budgets: shares of the pool whose influence may be looked at, cold start included.
        ks: numbers of clusters; None is the square root of the rows, at most half of the smallest budget.
        csps: cold starts, shares of every cluster.
        seeds: of the draws.
        top_p: the share of the pool that is selected.
        draw_batch: rows drawn at once.
        iterations, cluster_seed, centre: of k-means.

    Raises:
        ConfigError: a value out of range or at odds with another, or nothing to try.
    """

    budgets: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.8)
    ks: Sequence[int | None] = (None,)
    csps: Sequence[float] = (0.02,)
    seeds: Sequence[int] = tuple(range(10))
    top_p: float = 0.05
    draw_batch: int = 8
    iterations: int = 20
    cluster_seed: int = 0
    centre: bool = True

    def __post_init__(self) -> None:
        for name in ("budgets", "ks", "csps", "seeds"):
            values = getattr(self, name)
            if not len(values) or len(set(values)) < len(values):
                raise ConfigError(f"Grid({name}={list(values)}): must hold at least one value, none twice")
        for k in self.ks:
            if k is not None and k < 1:
                raise ConfigError(f"Grid(ks={list(self.ks)}): a number of clusters must be at least 1")
        for budget, csp in itertools.product(self.budgets, self.csps):
            Budget(budget, csp, self.top_p)
        check_draws(Random(), self.draw_batch, "one")
        for seed in self.seeds:
            check_seed(seed)


def named_policies(names: Sequence[str]) -> dict[str, Policy | RowPolicy]:
    """The policies of these names, each one of `POLICIES`, one over rows or `module:callable`.

    The module is one that is installed or lies in the working directory. A class is called without arguments
    and gives the policy; anything else callable is the policy. One's own is tried on two arms at once, so a
    slip is told before anything is computed.

    Raises ConfigError for a name that is unknown, and for a policy that cannot be had or does not work.
    """
    return {name: _own(name) if ":" in name else named_policy(name) for name in names}


def _own(name: str) -> Policy:
    module, _, attribute = name.partition(":")
    doing = "importing it"
    try:
        with _working_directory_importable():
            found: Any = getattr(importlib.import_module(module), attribute)
            doing = "calling the class"
            policy: Any = found() if inspect.isclass(found) else found
            doing = "scoring two arms"
            shape = np.asarray(policy(_two_arms()), np.float64).shape
    except Exception as error:
        said = f"{type(error).__name__}: {reason(error)}"
        raise ConfigError(
            f"--policies {name}: {doing} failed{_place(error.__traceback__)} ({said}); expected MODULE:NAME,"
            f" installed or in {Path.cwd()}, of a class that is called without arguments, or of a function of"
            " the open arms"
        ) from error
    if shape != (2,):
        raise ConfigError(
            f"--policies {name}: returned shape {shape} for two arms: expected (2,), one number an open arm"
        )
    return policy  # type: ignore[no-any-return]  # what it returns is checked at every draw


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Let modules there be imported, those that are installed first."""
    folder = str(Path.cwd())
    sys.path.append(folder)
    try:
        yield
    finally:
        if folder in sys.path:
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(folder)]


def _two_arms() -> Arms:
    arms = Arms({0: 3, 1: 2}, np.random.default_rng(0))
    for arm, score in enumerate((0.5, 0.25)):
        arms.record(arm, np.array([score]))
    return arms


def _place(raised: TracebackType | None) -> str:
    """Where in a person's own code; empty if the error is not from there."""
    ours = (__file__, importlib.__file__)
    frames = traceback.extract_tb(raised)
    own = [at for at in frames if at.filename not in ours and not at.filename.startswith("<")]
    return f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
