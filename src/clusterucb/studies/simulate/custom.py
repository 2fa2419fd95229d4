"""Policies by name, and of one's own as `module:callable`."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from clusterucb.errors import ConfigError, reason
from clusterucb.selection.arms import Arms
from clusterucb.selection.policies import Policy
from clusterucb.selection.selector import RowPolicy, named_policy


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
