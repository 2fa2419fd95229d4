"""Which of a task's questions make the target, and how many shots a question may have."""

from __future__ import annotations

import numpy as np

from clusterucb.errors import ConfigError

__all__ = ["check_shots", "draw"]


def draw(task: str, there: int, rows: int | None, seed: int, usual: int | None = None) -> list[int]:
    """`rows` of the indices 0 to `there` - 1, drawn by the seed, sorted.

    For None as many as are `usual`, if there are that many; all of them where no number is.
    Raises ConfigError if there are not `rows`.
    """
    if rows is None:
        rows = there if usual is None else min(usual, there)
    if not 1 <= rows <= there:
        raise ConfigError(f"{task}: {rows} target rows were asked for; expected 1 to {there}")
    drawn = np.random.default_rng(seed).choice(there, rows, replace=False)
    return [int(i) for i in np.sort(drawn)]


def check_shots(task: str, shots: int, most: int) -> None:
    """Raise ConfigError unless a question of the task can have that many shots."""
    if not 0 <= shots <= most:
        expected = f"0 to {most}" if most else "0"
        raise ConfigError(f"{task}: {shots} shots were asked for; expected {expected}")
