"""What a run directory says, read once into plain values: the sections of a report never touch a file.

A run may be unfinished, moved, or without its pool: what is not there is None or empty.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from clusterucb.config import Config, load
from clusterucb.data.pool import Pool
from clusterucb.data.target import Target
from clusterucb.errors import ClusterUCBError, InputError
from clusterucb.features.store import FeatureStore
from clusterucb.report.examples import Example, chosen_rows, example
from clusterucb.report.feature_map import FeatureMap, map_features
from clusterucb.run.costs import Cost
from clusterucb.run.directory import RunDir
from clusterucb.run.methods import method_of
from clusterucb.runtime.files import read_json
from clusterucb.steps.summary import recorded_costs
from clusterucb.tasks import TASKS


@dataclass(frozen=True, eq=False)
class Sources:
    """Where the usable rows come from.

    Attributes:
        names: of the sources.
        codes: source of each usable row, (N,).
    """

    names: list[str]
    codes: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RoundData:
    """One selection.

    Attributes:
        number: from 1.
        summary: the content of its summary.json.
        rows, scores: chosen usable rows, ascending, and their influence, (L,).
        ids, sources: of the chosen rows.
        drawn, drawn_scores: all rows that were scored, in the order of drawing or by falling score, (n,).
        arms: the cluster that each was drawn from; None where all rows were scored, (n,).
        cold: how many of the first draws were the cold start.
    """

    number: int
    summary: Mapping[str, Any]
    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    ids: list[str]
    sources: list[str]
    drawn: NDArray[np.int64]
    drawn_scores: NDArray[np.float64]
    arms: NDArray[np.int64] | None

    @property
    def cold(self) -> int:
        """Rows of the cold start."""
        return int(self.summary["cold_start"])


@dataclass(frozen=True, eq=False)
class RunData:
    """One run.

    Attributes:
        name: how the page calls it.
        path: the run directory.
        config, settings: as values, and as the YAML text that was saved.
        rows, excluded: counts of usable rows and of those that cannot be used; None before they are known.
        steps: what each finished step has cost.
        full: the method without a budget, from summary.json.
        rounds: the selections that are there.
        periods: losses after training periods, by period, as evaluation.json has them for a model.
        evaluation: the content of evaluation.json.
        benchmarks: that of benchmarks/results.json.
        clusters: of each usable row, (N,), where there is a bandit.
        feature_map: the stored features in a plane.
        subtasks: names of the target's subtasks, in the order of the directions.
        sources: of the usable rows; None without the pool.
        examples: by usable row, the rows to be shown.
        pool_missing: why the pool's texts cannot be shown, if so.
        excluded_rows: id and reason of each row that cannot be used.
        contamination: the content of contamination.json.
        made_with: fingerprints of what the features were made with.
    """

    name: str
    path: Path
    config: Config
    settings: str
    rows: int | None
    excluded: int | None
    steps: dict[str, Cost]
    full: Mapping[str, Any] | None
    rounds: list[RoundData]
    periods: dict[int, Mapping[str, Any]]
    evaluation: Mapping[str, Any] | None
    benchmarks: Mapping[str, Any] | None
    clusters: NDArray[np.int64] | None
    feature_map: FeatureMap | None
    subtasks: list[str]
    sources: Sources | None
    examples: dict[int, Example]
    pool_missing: str | None
    excluded_rows: list[dict[str, str]]
    contamination: Mapping[str, Any] | None
    made_with: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.evaluation is not None

    @cached_property
    def total(self) -> Cost:
        """Of all steps."""
        return sum(self.steps.values(), Cost())

    @property
    def hidden(self) -> bool:
        """Whether the stored features are of hidden states."""
        return self.config.method == "dynamic" and self.config.clustering.features == "hidden"

    @property
    def method(self) -> str:
        """As a person says it."""
        bandit = " with the bandit" if self.config.budgeted else ""
        return f"{self.config.method}{bandit}{', clusters of hidden states' if self.hidden else ''}"

    @property
    def share_of_full(self) -> float | None:
        """Cost as a share of that of the method without a budget, in gradients; None before the run's end."""
        return self.total.gradient_equivalents / self.full["pool_gradients"] if self.full else None

    @cached_property
    def selected_sources(self) -> Counter[str]:
        """Selected rows of each source, over all selections."""
        return Counter(source for found in self.rounds for source in found.sources)

    def source_of(self, row: int) -> str | None:
        """The source of a usable row, where it is known."""
        return self.sources.names[int(self.sources.codes[row])] if self.sources else None


def read_run(path: str | Path, name: str | None = None, pool: Pool | None = None) -> RunData:
    """Read a run directory.

    Args:
        path: the directory.
        name: how the page calls it; the directory's own name if none is given.
        pool: the run's pool, if it is open already; otherwise its files are read, if they are there.

    Raises:
        InputError: no run is there.
    """
    run = RunDir(path)
    if not run.config.exists():
        raise InputError(f"{path}: no config.yaml there; expected the directory of a run (its --out)")
    config = load(run.config, {"out": str(path)})
    last = config.training.periods if config.method == "dynamic" else 1
    numbers = [n for n in range(1, last + 1) if run.round(n).exists()]
    rounds = [_read_round(run.round(n)) for n in numbers]
    opened, missing = _open_pool(run, config, pool)
    places = np.load(run.pool / "rows.npy") if run.pool.exists() else np.empty(0, np.int64)
    manifest = _json(run.pool / "manifest.json") or {}
    clusters = _clusters(run, config)
    return RunData(
        name=name or Path(path).absolute().name,
        path=run.path.absolute(),
        config=config,
        settings=run.config.read_text(encoding="utf-8"),
        rows=manifest.get("usable"),
        excluded=manifest.get("excluded"),
        steps=recorded_costs(run, method_of(config), numbers),
        full=(_json(run.summary) or {}).get("full"),
        rounds=rounds,
        periods=_periods(run, config),
        evaluation=_json(run.evaluation),
        benchmarks=_json(run.benchmarks / "results.json"),
        clusters=clusters,
        feature_map=_feature_map(run, clusters, rounds),
        subtasks=_subtasks(run, config),
        sources=Sources(opened.sources, opened.source_codes[places].astype(np.int64)) if opened else None,
        examples=_examples(run, rounds, opened, places),
        pool_missing=missing,
        excluded_rows=[*_lines(run.pool / "excluded.jsonl")],
        contamination=_json(run.contamination),
        made_with=(_json(run.features / "manifest.json") or {}).get("made_with", {}),
    )


def _read_round(folder: Path) -> RoundData:
    arrays, summary = load_file(folder / "selection.safetensors"), read_json(folder / "summary.json")
    sidecar = [(entry["id"], entry["source"]) for entry in _lines(folder / "selected.ids.jsonl")]
    draws = [(draw["arm"], len(draw["ids"])) for draw in _lines(folder / "draws.jsonl")]
    arms = np.repeat(*np.array(draws).T) if draws else None
    return RoundData(
        number=summary["round"],
        summary=summary,
        rows=arrays["rows"],
        scores=arrays["scores"],
        ids=[name for name, _ in sidecar],
        sources=[source for _, source in sidecar],
        drawn=arrays["drawn"],
        drawn_scores=arrays["drawn_scores"],
        arms=arms,
    )


def _open_pool(run: RunDir, config: Config, pool: Pool | None) -> tuple[Pool | None, str | None]:
    """The pool if it is still the run's, or why it is not shown."""
    if not run.pool.exists():
        return None, "the pool is not read yet"
    try:
        pool = pool or Pool.read(config.pool)
    except ClusterUCBError as error:
        return None, str(error)
    if pool.fingerprint != read_json(run.pool / "manifest.json")["made_with"]["pool"]:
        return None, "the pool's files have changed since the run read them"
    return pool, None


def _clusters(run: RunDir, config: Config) -> NDArray[np.int64] | None:
    return load_file(run.clusters)["labels"] if config.budgeted and run.clusters.exists() else None


def _periods(run: RunDir, config: Config) -> dict[int, Mapping[str, Any]]:
    found = {n: _json(run.period(n)) for n in range(1, config.training.periods + 1)}
    return {n: loss for n, loss in found.items() if loss is not None}


def _feature_map(
    run: RunDir, clusters: NDArray[np.int64] | None, rounds: list[RoundData]
) -> FeatureMap | None:
    if not (run.features / "manifest.json").exists():
        return None
    features = FeatureStore(run.features).features
    directions = load_file(run.directions_at(1))["directions"]
    groups = np.zeros(len(features), np.int64) if clusters is None else clusters
    selected = np.concatenate([np.empty(0, np.int64), *(found.rows for found in rounds)])
    return map_features(features, directions, groups, selected)


def _subtasks(run: RunDir, config: Config) -> list[str]:
    """As the target's rows name them; none if these cannot be read any more."""
    named = config.target[0] in TASKS
    files = [str(run.target / f"{name}.jsonl") if named else name for name in config.target]
    try:
        return Target.read(files, "subtask" if named else config.subtask).subtasks
    except ClusterUCBError:
        return []


def _examples(
    run: RunDir, rounds: list[RoundData], pool: Pool | None, places: NDArray[np.int64]
) -> dict[int, Example]:
    """The rows to be shown: from the pool, or the chosen ones from the lines that were written."""
    wanted = chosen_rows([(found.rows, found.scores, found.drawn, found.drawn_scores) for found in rounds])
    shown: dict[int, Example] = {}
    for found in rounds:
        with (run.round(found.number) / "selected.jsonl").open("rb") as file:
            for row, identity, source, line in zip(
                found.rows.tolist(), found.ids, found.sources, file, strict=True
            ):
                if row in wanted and row not in shown:
                    shown[row] = example(identity, source, json.loads(line))
    if pool is not None:
        for row in sorted(wanted - shown.keys()):
            place = int(places[row])
            shown[row] = example(pool.id(place), pool.source(place), pool.record(place))
    return shown


def _json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)
