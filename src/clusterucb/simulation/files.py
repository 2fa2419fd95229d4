"""Outcomes as CSV: simulation.csv, one line an outcome, and draws.csv, one line an outcome and arm."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clusterucb.run.directory import publish
from clusterucb.studies.simulate.simulate import Outcome
from clusterucb.studies.simulate.truth import MEASURES

__all__ = ["write_draws", "write_outcomes"]

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
