"""From the runs of a comparison to its table: what each method reaches, how surely, and what it costs.

Two uncertainties, never mixed. The spread of a method's loss is the sample deviation over its repetitions.
The error of a difference is over held-out rows: losses are averaged over repetitions first, row by row, then
subtracted, and the error is the sample deviation of these differences over sqrt(n).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterucb.config import Config, load
from clusterucb.evaluation.scores import standard_error
from clusterucb.run.costs import Cost
from clusterucb.run.methods import method_of
from clusterucb.runtime.files import publish, read_json
from clusterucb.steps.summary import recorded_files
from clusterucb.studies.compare.cells import Cell

_REFERENCE = "clusterucb"
_FULL = "dynamic"


@dataclass(frozen=True)
class Estimate:
    """A mean and how far it may be off; None where a single number tells nothing of that."""

    mean: float
    error: float | None
    over: str
    """What the error is over: repetitions (their sample deviation) or rows (a standard error)."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def spread(values: Sequence[float]) -> Estimate:
    """Mean and sample deviation over repetitions."""
    error = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Estimate(float(np.mean(values)), error, "repetitions")


def row_differences(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Estimate:
    """Mean over rows of `ours` minus `theirs`, each (repetitions, n) or (n,), with its standard error."""
    return _over_rows(np.atleast_2d(ours).mean(0) - np.atleast_2d(theirs).mean(0))


def _over_rows(values: NDArray[np.float64]) -> Estimate:
    return Estimate(float(values.mean()), standard_error(values), "rows")


@dataclass(frozen=True)
class _Finished:
    """A run that has ended well."""

    cell: Cell

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        return read_json(self.cell.run.evaluation)

    @cached_property
    def summary(self) -> dict[str, Any]:
        return read_json(self.cell.run.summary)

    def losses(self, model: str) -> NDArray[np.float64]:
        """Of each held-out row, (n,), under `base` or `adapter`."""
        return np.array(self.evaluation[model]["losses"], np.float64)

    @cached_property
    def cost(self) -> Cost:
        """Of selecting and training, as if the run had been alone."""
        steps = {name: cost for name, cost in self.summary["steps"].items() if name != "evaluate"}
        return sum(map(Cost.from_json, steps.values()), Cost())

    def recorded(self) -> Iterator[Path]:
        """The files in which it is written down what its steps took, of which runs may share some."""
        config = load(self.cell.run.config, {"out": str(self.cell.run.path)})
        method = method_of(config)
        rounds = method.rounds(config.training.periods)
        yield from chain.from_iterable(recorded_files(self.cell.run, method.numbers, rounds).values())

    def scores(self, model: str) -> dict[str, Estimate]:
        """Results of benchmarks, if there are any; other questions are another benchmark."""
        path = self.cell.run.benchmarks / "results.json"
        found = read_json(path)["benchmarks"] if path.exists() else {}
        return {
            f"{name} {metric} ({task['questions']} questions)": Estimate(
                values[model]["value"], values[model]["standard_error"], "rows"
            )
            for name, task in found.items()
            for metric, values in task["metrics"].items()
        }


def _together(runs: Iterable[_Finished]) -> Cost:
    """What these runs took, with what they share counted once, be it one file or several links to it."""
    files = {
        (stat.st_dev, stat.st_ino): path for run in runs for path in run.recorded() for stat in [path.stat()]
    }
    return sum(map(Cost.recorded, files.values()), Cost())


@dataclass
class _Row:
    """One method's runs."""

    name: str
    finished: list[_Finished] = field(default_factory=list)
    states: list[str] = field(default_factory=list)

    def against(self, other: _Row) -> dict[str, Any] | None:
        """The difference of the losses over the repetitions that both have; None without such."""
        pairs = [(a, b) for a in self.finished for b in other.finished if a.cell.repeat == b.cell.repeat]
        if not pairs:
            return None
        ours, theirs = (
            np.stack([run.losses("adapter") for run in runs]) for runs in zip(*pairs, strict=True)
        )
        return {**row_differences(ours, theirs).to_json(), "repetitions": len(pairs)}

    def loss(self) -> Estimate:
        """Over repetitions, or over rows where there is one repetition."""
        losses = [run.losses("adapter") for run in self.finished]
        return spread([float(rows.mean()) for rows in losses]) if len(losses) > 1 else _over_rows(losses[0])

    def against_base(self) -> Estimate:
        """Over all repetitions."""
        base, adapter = (np.stack([run.losses(m) for run in self.finished]) for m in ("base", "adapter"))
        return row_differences(adapter, base)

    def cost(self) -> dict[str, float]:
        """The mean cost of a run."""
        costs = [asdict(run.cost) for run in self.finished]
        return {name: float(np.mean([cost[name] for cost in costs])) for name in costs[0]}


def compared(cells: Iterable[Cell], config: Config) -> dict[str, Any]:
    """The content of comparison.json.

    Args:
        cells: all that were begun, in the order of the table.
        config: the settings that they share.
    """
    cells = list(cells)
    rows: dict[str, _Row] = {}
    for cell in cells:
        row = rows.setdefault(cell.preset.name, _Row(cell.preset.name))
        row.states.append(cell.state)
        if cell.state == "finished":
            row.finished.append(_Finished(cell))
    finished = [run for row in rows.values() for run in row.finished]
    done = [name for name, row in rows.items() if row.finished]
    reference = _REFERENCE if _REFERENCE in done else next(iter(done), None)
    return {
        **_base(finished),
        "reference": reference,
        "methods": {name: _method(row, rows, reference, config) for name, row in rows.items()},
        "cells": [_line(cell) for cell in cells],
        "computed": _together(finished).to_json(),
    }


def _base(finished: Sequence[_Finished]) -> dict[str, Any]:
    """The base model and what all are evaluated on; the first run tells, as it is the same for all."""
    if not finished:
        return {"on": None, "rows": None, "base": None}
    first = finished[0]
    runs = reversed(finished)
    benchmarks = {name: found.to_json() for run in runs for name, found in run.scores("base").items()}
    base = {"loss": _over_rows(first.losses("base")).to_json(), "benchmarks": benchmarks}
    return {"on": first.evaluation["on"], "rows": first.evaluation["rows"], "base": base}


def _method(row: _Row, rows: Mapping[str, _Row], reference: str | None, config: Config) -> dict[str, Any]:
    counts = {state: row.states.count(state) for state in ("finished", "failed", "unfinished")}
    if not row.finished or reference is None:
        return counts
    cost = row.cost()
    equivalents = float(np.mean([run.cost.gradient_equivalents for run in row.finished]))
    full = config.training.periods * row.finished[0].summary["rows"]
    measured = rows[_FULL].cost()["seconds"] if _FULL in rows and rows[_FULL].finished else None
    return {
        **counts,
        "loss": row.loss().to_json(),
        "against_base": row.against_base().to_json(),
        "against_reference": row.against(rows[reference]) if row.name != reference else None,
        "benchmarks": _benchmarks(row),
        "cost": cost,
        "of_full_dynamic": {
            "pool_gradients": cost["pool_gradients"] / full,
            "cost": equivalents / full,
            "seconds": cost["seconds"] / measured if measured else None,
        },
    }


def _benchmarks(row: _Row) -> dict[str, Any]:
    scores = [run.scores("adapter") for run in row.finished]
    names = dict.fromkeys(name for found in scores for name in found)
    found = {name: [run[name] for run in scores if name in run] for name in names}
    return {
        name: (spread([run.mean for run in runs]) if len(runs) > 1 else runs[0]).to_json()
        for name, runs in found.items()
    }


def _line(cell: Cell) -> dict[str, Any]:
    """One line of comparison.csv."""
    facts: dict[str, Any] = {"method": cell.preset.name, "repetition": cell.repeat, "state": cell.state}
    if cell.state != "finished":
        return {**facts, "failure": cell.failure}
    run = _Finished(cell)
    loss, difference = (
        _over_rows(run.losses("adapter")),
        row_differences(run.losses("adapter"), run.losses("base")),
    )
    return {
        **facts,
        "loss": loss.mean,
        "standard_error": loss.error,
        "against_base": difference.mean,
        "against_base_error": difference.error,
        **{name: value for name, value in run.cost.to_json().items() if name != "rows"},
        **{name: found.mean for name, found in run.scores("adapter").items()},
    }


def write_cells(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Publish the cells as CSV; a column that a cell lacks is empty there."""
    columns = dict.fromkeys(name for line in lines for name in line)
    failure = [name for name in columns if name == "failure"]
    with publish(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*(name for name in columns if name not in failure), *failure])
        writer.writeheader()
        writer.writerows(lines)
