"""Which of a task's questions make the target, and how many shots a question may have."""

from __future__ import annotations

import numpy as np

from clusterucb.errors import ConfigError

__all__ = ["check_shots", "draw"]


def draw(task: str, there: int, rows: int | None, seed: int) -> list[int]:
    """`rows` of the indices 0 to `there` - 1, drawn by the seed, sorted; all of them for None.

    Raises ConfigError if there are not that many.
    """
    if rows is None:
        return list(range(there))
    if not 1 <= rows <= there:
        raise ConfigError(f"{task}: {rows} target rows were asked for; expected 1 to {there}")
    drawn = np.random.default_rng(seed).choice(there, rows, replace=False)
    return [int(i) for i in np.sort(drawn)]


def check_shots(task: str, shots: int, most: int) -> None:
    """Raise ConfigError unless a question of the task can have that many shots."""
    if not 0 <= shots <= most:
        expected = f"0 to {most}" if most else "0"
        raise ConfigError(f"{task}: {shots} shots were asked for; expected {expected}")
