"""Questions of an evaluation with their right answers, on whose loss an adapter can be compared."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import numpy as np

from clusterucb.errors import ConfigError
from clusterucb.tasks.question import Question
from clusterucb.tasks.task import Task

__all__ = ["held_out"]


def held_out(
    task: Task, data_dir: Path | None, rows: int, seed: int, unwanted: Container[str]
) -> list[Question]:
    """At most `rows` questions, drawn by `seed`, without shots; none whose digest is `unwanted`.

    Raises:
        ConfigError: the benchmark gives no worked answers (BBH), or only such as are in the target.
    """
    known = [
        question
        for question in task.questions(data_dir, 0)
        if question.answer.strip() and question.digest not in unwanted
    ]
    if not known:
        raise ConfigError(f"holdout {task.name}: has no question with a worked answer to hold out")
    chosen = np.random.default_rng(seed).permutation(len(known))[:rows]
    return [known[i] for i in np.sort(chosen)]
