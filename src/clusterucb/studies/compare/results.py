"""From the runs of a comparison to its table: what each method reaches, how surely, and what it costs.

Two uncertainties, never mixed. The spread of a method's loss is the sample deviation over its repetitions.
The error of a difference is over held-out rows: losses are averaged over repetitions first, row by row, then
subtracted, and the error is the sample deviation of these differences over sqrt(n).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypedDict

import pandas as pd
from numpy.typing import ArrayLike

from clusterucb.config import Config, load
from clusterucb.run.costs import FORWARD_SHARE, Cost, recorded_files
from clusterucb.run.methods import method_of
from clusterucb.runtime.files import publish, read_json
from clusterucb.studies.compare.cells import Cell

_REFERENCE = "clusterucb"


class Estimate(TypedDict):
    """A mean and how far it may be off, by repetitions (sample deviation) or by rows (standard error)."""

    mean: float
    error: float | None
    """None where a single number tells nothing of it."""
    over: str


def estimate(values: ArrayLike, over: Literal["repetitions", "rows"]) -> Estimate:
    """Mean of (n,) over repetitions with their sample deviation, or over rows with its standard error."""
    numbers = pd.Series(values)
    error = float(numbers.sem() if over == "rows" else numbers.std())
    return {"mean": float(numbers.mean()), "error": None if math.isnan(error) else error, "over": over}


def row_differences(ours: ArrayLike, theirs: ArrayLike) -> Estimate:
    """Mean over rows of `ours` minus `theirs`, each (n,) or (n, repetitions), with its standard error."""
    return estimate(pd.DataFrame(ours).mean(axis=1) - pd.DataFrame(theirs).mean(axis=1), "rows")


def _recorded(cell: Cell) -> Iterator[Path]:
    """The files in which it is written down what a run's steps took, of which runs may share some."""
    config = load(cell.run.config)
    method = method_of(config)
    return chain(*recorded_files(cell.run, method, method.rounds(config.training.periods)).values())


def _together(finished: Iterable[Cell]) -> Cost:
    """What these runs took, with what they share counted once, be it one file or several links to it."""
    paths = chain.from_iterable(map(_recorded, finished))
    files = {(path.stat().st_dev, path.stat().st_ino): path for path in paths}
    return sum(map(Cost.recorded, files.values()), Cost())


def _scores(cell: Cell, model: str) -> dict[str, Estimate]:
    """Results of benchmarks, if there are any; other questions are another benchmark."""
    path = cell.run.benchmarks / "results.json"
    found = read_json(path)["benchmarks"] if path.exists() else {}
    return {
        f"{name} {metric} ({task['questions']} questions)": {
            "mean": values[model]["value"],
            "error": values[model]["standard_error"],
            "over": "rows",
        }
        for name, task in found.items()
        for metric, values in task["metrics"].items()
    }


@dataclass(frozen=True)
class _Row:
    """One method's cells."""

    cells: Sequence[Cell]

    @cached_property
    def finished(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.state == "finished"]

    def losses(self, model: str) -> pd.DataFrame:
        """A line a held-out row, a column a repetition."""
        return pd.DataFrame({cell.repeat: cell.losses(model) for cell in self.finished})

    def loss(self) -> Estimate:
        """Over repetitions, or over rows where there is one repetition."""
        losses = self.losses("adapter")
        several = len(self.finished) > 1
        return estimate(losses.mean(), "repetitions") if several else estimate(losses.iloc[:, 0], "rows")

    def against(self, other: _Row) -> dict[str, Any] | None:
        """The difference of the losses over the repetitions that both have; None without such."""
        ours, theirs = self.losses("adapter"), other.losses("adapter")
        both = ours.columns.intersection(theirs.columns)
        return {**row_differences(ours[both], theirs[both]), "repetitions": len(both)} if len(both) else None

    def cost(self) -> dict[str, float]:
        """The mean cost of a run."""
        totals = [(Cost.from_json(cell.summary["total"]), cell.bill) for cell in self.finished]
        costs = [{**cost.to_json(), "passes": bill.get("passes")} for cost, bill in totals]
        means: dict[str, float] = pd.DataFrame(costs, dtype=float).mean().dropna().to_dict()
        return means

    def benchmarks(self) -> dict[str, Estimate]:
        """The mean of each score over repetitions."""
        runs = [_scores(cell, "adapter") for cell in self.finished]
        found = {name: [run[name] for run in runs if name in run] for name in dict.fromkeys(chain(*runs))}
        return {
            name: estimate([one["mean"] for one in scores], "repetitions") if scores[1:] else scores[0]
            for name, scores in found.items()
        }


def compared(cells: Iterable[Cell], config: Config) -> dict[str, Any]:
    """The content of comparison.json, of all cells that were begun with these settings, in their order."""
    cells = list(cells)
    methods = dict.fromkeys(cell.preset.name for cell in cells)
    rows = {name: _Row([cell for cell in cells if cell.preset.name == name]) for name in methods}
    done = [name for name, row in rows.items() if row.finished]
    reference = _REFERENCE if _REFERENCE in done else next(iter(done), None)
    finished = [cell for row in rows.values() for cell in row.finished]
    return {
        **_base(finished),
        "reference": reference,
        "methods": {name: _method(name, rows, reference, config) for name in rows},
        "bill": next((cell.bill for cell in finished if cell.bill.get("score_all")), None),
        "remarks": _remarks(rows),
        "cells": [_line(cell) for cell in cells],
        "computed": _together(finished).to_json(),
    }


def _remarks(rows: Mapping[str, _Row]) -> dict[str, list[str]]:
    """What was to be said of the first run of each method: the sentence, and the methods it is said of."""
    found: dict[str, list[str]] = {}
    for name, row in rows.items():
        for said in row.finished[0].summary.get("remarks", ()) if row.finished else ():
            found.setdefault(said, []).append(name)
    return found


def _base(finished: Sequence[Cell]) -> dict[str, Any]:
    """The base model and what all are evaluated on; the first run tells, as it is the same for all."""
    if not finished:
        return {"on": None, "rows": None, "base": None}
    first = finished[0]
    benchmarks = {name: found for cell in reversed(finished) for name, found in _scores(cell, "base").items()}
    base = {"loss": estimate(first.losses("base"), "rows"), "benchmarks": benchmarks}
    return {"on": first.evaluation["on"], "rows": first.evaluation["rows"], "base": base}


def _method(name: str, rows: Mapping[str, _Row], reference: str | None, config: Config) -> dict[str, Any]:
    row = rows[name]
    states = Counter(cell.state for cell in row.cells)
    counts: dict[str, Any] = {state: states[state] for state in ("finished", "failed", "unfinished")}
    if not row.finished or reference is None:
        return counts
    cost = row.cost()
    equivalents = cost["pool_gradients"] + FORWARD_SHARE * cost["pool_forwards"]
    full = config.training.periods * row.finished[0].summary["rows"]
    return {
        **counts,
        "loss": row.loss(),
        "against_base": row_differences(row.losses("adapter"), row.losses("base")),
        "against_reference": row.against(rows[reference]) if name != reference else None,
        "benchmarks": row.benchmarks(),
        "cost": cost,
        "of_full_dynamic": {"pool_gradients": cost["pool_gradients"] / full, "cost": equivalents / full},
    }


def _line(cell: Cell) -> dict[str, Any]:
    """One line of comparison.csv."""
    facts: dict[str, Any] = {"method": cell.preset.name, "repetition": cell.repeat, "state": cell.state}
    if cell.state != "finished":
        return {**facts, "failure": cell.failure}
    loss = estimate(cell.losses("adapter"), "rows")
    difference = row_differences(cell.losses("adapter"), cell.losses("base"))
    return {
        **facts,
        "loss": loss["mean"],
        "standard_error": loss["error"],
        "against_base": difference["mean"],
        "against_base_error": difference["error"],
        **{name: value for name, value in cell.summary["total"].items() if name != "rows"},
        **{name: found["mean"] for name, found in _scores(cell, "adapter").items()},
    }


def write_cells(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Publish the cells as CSV; a column that a cell lacks is empty there."""
    table = pd.DataFrame(lines, dtype=object)  # which leaves whole numbers whole beside a gap
    if "failure" in table:
        table["failure"] = table.pop("failure")  # to the end
    with publish(path) as part:
        table.to_csv(part, index=False, lineterminator="\r\n")
