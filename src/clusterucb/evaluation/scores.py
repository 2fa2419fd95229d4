"""From a number for each question to a result with its standard error, by subtask and overall."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Mean:
    """A mean over `questions` questions; the error is None where a subtask has a single one."""

    value: float
    standard_error: float | None
    questions: int

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"value": self.value, "standard_error": self.standard_error, "questions": self.questions}


def standard_error(values: NDArray[np.float64]) -> float | None:
    """Of the mean of `values` (n,): the sample deviation over sqrt(n); None where there is a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def mean(values: NDArray[np.float64], subtasks: Sequence[str], *, macro: bool) -> Mean:
    """The mean of `values` (n,), or with `macro` the mean over subtasks of their means.

    The questions are a sample of those that could have been asked: the error of a mean is the sample
    deviation over sqrt(n), that of a mean of S independent means is sqrt(sum of their squares) / S.
    """
    if not macro:
        return _plain(values)
    parts = list(by_subtask(values, subtasks).values())
    errors = [part.standard_error for part in parts]
    error = None
    if None not in errors:
        error = math.sqrt(sum(e * e for e in errors if e is not None)) / len(parts)
    return Mean(float(np.mean([part.value for part in parts])), error, len(values))


def by_subtask(values: NDArray[np.float64], subtasks: Sequence[str]) -> dict[str, Mean]:
    """The mean of each subtask, in alphabetical order."""
    names = np.array(subtasks)
    return {name: _plain(values[names == name]) for name in sorted(set(subtasks))}


def _plain(values: NDArray[np.float64]) -> Mean:
    return Mean(float(values.mean()), standard_error(values), len(values))
