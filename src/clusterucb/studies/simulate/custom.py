"""Policies by name, and of one's own as `module:callable`."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clusterucb.errors import ConfigError
from clusterucb.selection.arms import Arms
from clusterucb.selection.linear_ucb import LinearUCB
from clusterucb.selection.policies import Policy
from clusterucb.selection.selector import named_policy


def named_policies(names: Sequence[str]) -> dict[str, Policy | LinearUCB]:
    """The policies of these names, each one of `POLICIES`, linear_ucb or `module:callable`.

    The module is one that is installed or lies in the working directory. A class is called without arguments
    and gives the policy; anything else callable is the policy. One's own is tried on two arms at once, so a
    slip is told before anything is computed.

    Raises ConfigError for a name that is unknown, and for a policy that cannot be had or does not work.
    """
    return {name: _custom(name) if ":" in name else named_policy(name) for name in names}


def _custom(name: str) -> Policy:
    module_name, _, path = name.partition(":")
    with _from_the_working_directory():
        found = _attribute(name, _module(name, module_name), path)
        if not callable(found):
            raise ConfigError(
                f"--policies {name}: is a {type(found).__name__}; expected a class or a function"
            )
        if inspect.isclass(found):
            with _one_line(name, "calling the class without arguments"):
                found = found()
        _try(name, found)
    return found  # type: ignore[no-any-return]  # what it returns was tried, and is checked at every draw


@contextmanager
def _from_the_working_directory() -> Iterator[None]:
    """Let modules there be imported, those that are installed first."""
    folder = str(Path.cwd())
    sys.path.append(folder)
    try:
        yield
    finally:
        if folder in sys.path:
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(folder)]


def _module(name: str, module_name: str) -> Any:
    with _one_line(name, f"importing {module_name!r}"):
        try:
            return importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise  # the module is there, and misses another
    raise ConfigError(
        f"--policies {name}: there is no module {module_name!r}, neither installed nor in {Path.cwd()}"
    )


def _attribute(name: str, module: Any, path: str) -> Any:
    found = getattr(module, path, None)
    if found is None:
        has = ", ".join(key for key in vars(module) if callable(vars(module)[key]) and key[0] != "_")
        raise ConfigError(
            f"--policies {name}: {module.__name__!r} has no {path!r}; it has {has or 'nothing'}"
        )
    return found


def _try(name: str, found: Policy) -> None:
    arms = Arms({0: 3, 1: 2}, np.random.default_rng(0))
    for arm, score in enumerate((0.5, 0.25)):
        arms.record(arm, np.array([score]))
    with _one_line(name, "scoring two arms"):
        scores = np.asarray(found(arms), np.float64)
    if scores.shape != arms.ids.shape:
        raise ConfigError(
            f"--policies {name}: returned shape {scores.shape} for two arms:"
            f" expected {arms.ids.shape}, one number an open arm"
        )


@contextmanager
def _one_line(name: str, doing: str) -> Iterator[None]:
    """An error in a person's own code as one line that says where in it."""
    try:
        yield
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = (str(error).splitlines() or ["nothing"])[0]
        raise ConfigError(
            f"--policies {name}: {doing} failed at {where.filename}:{where.lineno}"
            f" ({type(error).__name__}: {said}); expected a class that is called without arguments,"
            " or a function of the open arms"
        ) from error
