"""Outcomes over seeds: one mean and spread for each policy and budget. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clusterucb.studies.simulate.simulate import STALE, UNIFORM, Outcome
from clusterucb.studies.simulate.truth import MEASURES

__all__ = ["Panel", "Setting", "Spread", "panels"]


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
