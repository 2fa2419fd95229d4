"""Where the time goes: seconds by stage, each moment counted once, for the innermost stage that is open.

    with profiled() as profile:
        with stage("forward"):
            ...
            with stage("write"):     # this time is not forward's
                ...
    profile.seconds                  # {"forward": ..., "write": ..., "other": ...}; the sum is the wall time

Without `profiled`, `stage` does nothing. A device that works asynchronously is waited for at both ends of a
stage, which costs some of its speed: only while profiling.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

OTHER = "other"


class Profile:
    """Seconds by stage; `wait` is called before the clock is read."""

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._wait = wait
        self._open = [OTHER]
        self._since = time.perf_counter()

    def enter(self, name: str) -> None:
        """From now on time is `name`'s."""
        self.settle()
        self._open.append(name)

    def leave(self) -> None:
        """From now on time is that of the stage around."""
        self.settle()
        self._open.pop()

    def settle(self) -> None:
        """Count the time since the clock was read last."""
        self._wait()
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now


_active: ContextVar[Profile | None] = ContextVar("clusterucb_profile", default=None)


@contextmanager
def profiled(wait: Callable[[], None] = lambda: None) -> Iterator[Profile]:
    """Profile the stages of the block."""
    profile = Profile(wait)
    token = _active.set(profile)
    try:
        yield profile
    finally:
        profile.settle()
        _active.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the block's time as `name`'s, if anything is profiled."""
    profile = _active.get()
    if profile is None:
        yield
        return
    profile.enter(name)
    try:
        yield
    finally:
        profile.leave()
