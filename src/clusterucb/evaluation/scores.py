"""From an answer to its scores, and from those to results: means, standard errors, paired differences."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from clusterucb.evaluation.sandbox.programs import run_programs
from clusterucb.tasks.humaneval import pass_at_k, program
from clusterucb.tasks.task import Task, Variant


def score(
    task: Task, variant: Variant, document: Mapping[str, Any], responses: Sequence[Any]
) -> dict[str, float]:
    """Each metric of one question, from 0 to 1.

    Args:
        document: the question; its `label` is the right choice's place, its `gold` what the task asks for.
        responses: log-likelihoods of the choices, of which the first of the largest counts, or texts.
    """
    if variant.choices:
        return {"acc": float(np.argmax(responses) == document["label"])}
    gold = json.loads(document["gold"])
    if task.score is not None:
        return task.score(gold, responses[0])
    verdicts = run_programs([program(gold, written) for written in responses])
    passed = sum(verdict.passed for verdict in verdicts)
    return {f"pass@{variant.k}": pass_at_k(len(responses), passed, variant.k)}


class Mean(TypedDict):
    """A mean over `questions` questions; the error is None where a subtask has a single one."""

    value: float
    standard_error: float | None
    questions: int


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
    parts = by_subtask(values, subtasks).values()
    errors = [part["standard_error"] for part in parts]
    error = None
    if None not in errors:
        error = math.sqrt(sum(e * e for e in errors if e is not None)) / len(parts)
    value = float(np.mean([part["value"] for part in parts]))
    return Mean(value=value, standard_error=error, questions=len(values))


def by_subtask(values: NDArray[np.float64], subtasks: Sequence[str]) -> dict[str, Mean]:
    """The mean of each subtask, in alphabetical order."""
    names = np.array(subtasks)
    return {name: _plain(values[names == name]) for name in sorted(set(subtasks))}


def _plain(values: NDArray[np.float64]) -> Mean:
    value = float(values.mean())
    return Mean(value=value, standard_error=standard_error(values), questions=len(values))
