"""Outcomes over seeds: one mean and spread for each policy and budget. numpy only.

Outcomes as CSV: simulation.csv, one line an outcome, and draws.csv, one line an outcome and arm.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clusterucb.runtime.files import publish
from clusterucb.studies.simulate.simulate import STALE, UNIFORM, Outcome
from clusterucb.studies.simulate.truth import MEASURES


class Setting(NamedTuple):
    """What one panel is of."""

    problem: str
    k: int
    csp: float


class Spread(NamedTuple):
    """A measure over the seeds of one policy and budget."""

    mean: float
    deviation: float
    """Standard deviation of a seed's value (n - 1); NaN for a single seed."""


class Panel(NamedTuple):
    """All policies of one problem, k and csp, those of reference last."""

    setting: Setting
    seeds: int
    spreads: dict[str, dict[str, dict[float, Spread]]]
    """By measure, policy and rising budget; without a measure that says nothing of the problem."""


def panels(outcomes: Sequence[Outcome]) -> list[Panel]:
    """A panel for every problem, k and csp, in order of appearance, each with its problem's references."""
    references = [outcome for outcome in outcomes if outcome.policy in (STALE, UNIFORM)]
    groups: dict[Setting, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.policy not in (STALE, UNIFORM):
            groups.setdefault(Setting(outcome.problem, outcome.k, outcome.csp), []).append(outcome)
    return [
        Panel(
            setting,
            len({outcome.seed for outcome in group}),
            _spreads([*group, *(r for r in references if r.problem == setting.problem)]),
        )
        for setting, group in groups.items()
    ]


def _spreads(outcomes: list[Outcome]) -> dict[str, dict[str, dict[float, Spread]]]:
    """By measure, policy and rising budget."""
    found: dict[str, dict[str, dict[float, list[float]]]] = {}
    for outcome in outcomes:
        for measure in MEASURES:
            if not np.isnan(value := getattr(outcome, measure)):
                by_budget = found.setdefault(measure, {}).setdefault(outcome.policy, {})
                by_budget.setdefault(outcome.budget, []).append(value)
    return {
        measure: {
            policy: {budget: _spread(by_budget[budget]) for budget in sorted(by_budget)}
            for policy, by_budget in policies.items()
        }
        for measure, policies in found.items()
    }


def _spread(values: list[float]) -> Spread:
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"))


RUN = ("problem", "policy", "budget", "k", "csp", "seed")


def write_outcomes(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Publish what every run found; floats read back exactly, a measure that says nothing is empty."""
    columns = (*RUN, "spent", *MEASURES)
    _write(path, columns, ([getattr(outcome, name) for name in columns] for outcome in outcomes))


def write_draws(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Publish how often each arm was drawn, beside its size and the mean influence of all its rows."""
    _write(path, (*RUN, "arm", "size", "draws", "mean_influence"), _draws(outcomes))


def _draws(outcomes: Iterable[Outcome]) -> Iterator[list[Any]]:
    for outcome in outcomes:
        run = [getattr(outcome, name) for name in RUN]
        columns = (outcome.arms.sizes, outcome.draws, outcome.arms.influence)
        for arm, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            yield [*run, arm, *values]


def _write(path: Path, columns: Sequence[str], rows: Iterable[list[Any]]) -> None:
    with publish(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow(
                ["" if isinstance(value, float) and math.isnan(value) else value for value in row]
            )
