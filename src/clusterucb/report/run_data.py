"""What a run directory says: the sections of a report ask this, and never touch a file themselves.

A run may be unfinished, moved, or without its pool: what is not there is None or empty.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from clusterucb.config import load
from clusterucb.data.files import Lines
from clusterucb.data.pool import Pool
from clusterucb.data.rows import Row, parse_messages
from clusterucb.data.target import Target
from clusterucb.errors import ClusterUCBError, InputError
from clusterucb.features.influence import Picked, Vectors
from clusterucb.features.store import FeatureStore
from clusterucb.run.costs import Cost, recorded_costs
from clusterucb.run.directory import RunDir
from clusterucb.run.methods import method_of
from clusterucb.run.rounds import Round, Scored, read_round, read_scored, read_sidecar
from clusterucb.run.screening import Screening
from clusterucb.runtime.files import read_json
from clusterucb.tasks import TASKS

Json = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class RoundData(Round):
    """One selection, with all that it scored, and the ids and sources of the chosen rows."""

    scored: Scored
    ids: list[str]
    sources: list[str]

    @property
    def period(self) -> str:
        """As a person says it."""
        return f"period {self.number}"

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Whether each scored row was chosen, (n,)."""
        return np.isin(self.scored.rows, self.rows)

    @property
    def cold(self) -> int:
        """How many of the first draws were the cold start."""
        return int(self.summary["cold_start"])


class RunData:
    """One run, by the `name` that the page calls it; what is large of it is read when it is first asked for.

    Raises InputError where no run is. A `pool` that is open already is not read anew.
    """

    def __init__(self, path: str | Path, name: str | None = None, pool: Pool | None = None) -> None:
        self.dir = RunDir(path)
        if not self.dir.config.exists():
            raise InputError(f"{path}: no config.yaml there; expected the directory of a run (its --out)")
        self.path = self.dir.path.absolute()
        self.name = name or self.path.name
        self.config = load(self.dir.config, {"out": str(path)})
        self.method = method_of(self.config)
        self.settings = self.dir.config.read_text(encoding="utf-8")  # as YAML
        self.counts = _read(self.dir.pool / "manifest.json", read_json)  # and the pool's fingerprint
        self.contamination = _read(self.dir.contamination, read_json)
        self.usable = len(self._places) if self.counts else 0  # rows that can be chosen
        self.evaluation = _read(self.dir.evaluation, read_json)  # with which a run is finished
        self.benchmarks = _read(self.dir.benchmarks / "results.json", read_json)
        summary = _read(self.dir.summary, read_json) or {}
        self.bill: Json | None = summary.get("bill")  # None before the run's end
        self.remarks: list[str] = summary.get("remarks", [])
        self._pool = pool

    @property
    def method_name(self) -> str:
        """The method as a person says it."""
        method = self.method
        bandit, what = (" with the bandit", "clusters") if method.budgeted else ("", "features")
        features = f", {what} of {method.compares}" if method.features != "gradients" else ""
        return f"{method.name}{bandit}{features}"

    @property
    def model_name(self) -> str:
        """The model's hub id, or the name of its file or folder."""
        model = Path(self.config.model)
        return model.name if model.is_absolute() else self.config.model

    @cached_property
    def excluded(self) -> list[dict[str, str]]:
        """Id and reason of each row that cannot be used."""
        if self.counts is None:
            return []
        with (self.dir.pool / "excluded.jsonl").open(encoding="utf-8") as lines:
            return [*map(json.loads, lines), *self._screening.excluded]

    @cached_property
    def _screening(self) -> Screening:
        """The rows that are kept out of the run, though its index has them."""
        return Screening(self.contamination or {"hits": []})

    @cached_property
    def periods(self) -> dict[int, Json]:
        """Losses after training periods, as evaluation.json has them for a model."""
        files = {n: self.dir.period(n) for n in range(1, self.config.training.periods + 1)}
        return {n: read_json(file) for n, file in files.items() if file.exists()}

    @cached_property
    def rounds(self) -> list[RoundData]:
        """The selections that are there."""
        folders = map(self.dir.round, self.method.rounds(self.config.training.periods))
        return [_read_round(folder) for folder in folders if folder.exists()]

    @cached_property
    def selected(self) -> NDArray[np.int64]:
        """Usable rows of all selections, one after the other."""
        return np.concatenate([np.empty(0, np.int64), *(found.rows for found in self.rounds)])

    @cached_property
    def selected_sources(self) -> Counter[str]:
        """Selected rows of each source over all selections, the most frequent first."""
        found = Counter(source for found in self.rounds for source in found.sources)
        return Counter(dict(found.most_common()))

    @cached_property
    def steps(self) -> dict[str, Cost]:
        """What each finished step has cost."""
        return recorded_costs(self.dir, self.method, [found.number for found in self.rounds])

    @cached_property
    def total(self) -> Cost:
        """Of all steps."""
        return sum(self.steps.values(), Cost())

    @cached_property
    def clusters(self) -> NDArray[np.int64] | None:
        """The cluster of each usable row, (N,), where there is a bandit."""
        arrays = _read(self.dir.clusters, load_file) if self.method.budgeted else None
        return arrays["labels"][self._chosen_from] if arrays else None

    def in_clusters(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of these usable rows each cluster has, (K,); where there are clusters."""
        assert self.clusters is not None
        return np.bincount(self.clusters[rows], minlength=len(self.sizes))

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Rows of each cluster, (K,); none where there are no clusters."""
        return np.bincount([] if self.clusters is None else self.clusters)

    @cached_property
    def leading(self) -> list[int]:
        """Clusters by the rows selected from them, then by size."""
        order: list[int] = np.lexsort((-self.sizes, -self.in_clusters(self.selected))).tolist()
        return [cluster for cluster in order if self.sizes[cluster]]

    @cached_property
    def store(self) -> FeatureStore | None:
        """Features of the index's rows at the first checkpoint."""
        return _read(self.dir.features, FeatureStore)

    @property
    def features(self) -> Vectors | None:
        """Of the usable rows, (N, d)."""
        return Picked(self.store.features, self._chosen_from) if self.store else None

    @cached_property
    def directions(self) -> NDArray[np.float32] | None:
        """Of the target's subtasks, or rows, at that checkpoint, (S, d)."""
        arrays = _read(self.dir.directions_at(1), load_file)
        return arrays["directions"] if arrays else None

    @cached_property
    def subtasks(self) -> list[str]:
        """Names of what has directions; none if the target's rows cannot be read any more."""
        tasks, target = zip(*self.config.targets, strict=True)
        named = target[0] in TASKS
        files = [str(self.dir.target / f"{name}.jsonl") for name in target] if named else target
        try:
            found = Target.read(files, "subtask" if named else self.config.subtask, tasks)
            of_rows = self.config.selection.aim in ("nearest", "round_robin")
            return [row.id for row in found] if of_rows else found.subtasks
        except ClusterUCBError:
            return []

    @property
    def pool(self) -> Pool | None:
        """The pool, if it is still the run's."""
        return None if self.pool_missing else self._pool

    @cached_property
    def pool_missing(self) -> str | None:
        """Why the pool cannot be read, if so."""
        if self.counts is None:
            return "the pool is not read yet"
        try:
            self._pool = Pool.read(self.config.pool) if self._pool is None else self._pool
        except ClusterUCBError as error:
            return str(error)
        changed = self._pool.fingerprint != self.counts["made_with"]["pool"]
        return "the pool's files have changed since the run read them" if changed else None

    @cached_property
    def _every(self) -> NDArray[np.int64]:
        """The pool row of each row of the index."""
        found: NDArray[np.int64] = np.load(self.dir.pool / "rows.npy")
        return found

    @cached_property
    def _chosen_from(self) -> NDArray[np.int64]:
        """The place of each usable row in the index, (N,)."""
        return np.flatnonzero(~np.isin(self._every, [*self._screening.kept_out]))

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """The pool row of each usable row, (N,)."""
        return self._every[self._chosen_from]

    @cached_property
    def sources(self) -> tuple[list[str], NDArray[np.int32]] | None:
        """Names of sources, and the number of each usable row's, (N,); None without the pool."""
        return (self.pool.sources, self.pool.source_codes[self._places]) if self.pool is not None else None

    @cached_property
    def mostly(self) -> dict[int, str]:
        """The source that most rows of a cluster have, with its share, where sources are known."""
        if self.sources is None or self.clusters is None:
            return {}
        names, codes = self.sources
        pairs, rows = np.unique(self.clusters * len(names) + codes, return_counts=True)
        most: dict[int, str] = {}
        for at in np.argsort(-rows, kind="stable").tolist():
            cluster, source = divmod(int(pairs[at]), len(names))
            most.setdefault(cluster, f"{names[source]} ({rows[at] / self.sizes[cluster]:.0%})")
        return most

    def id(self, row: int) -> str | None:
        """The id of a usable row, where it is known."""
        return self.pool.id(int(self._places[row])) if self.pool is not None else None

    def read(self, rows: Iterable[int]) -> dict[int, Row]:
        """Usable rows with their text: those in the pool or, without it, those that were selected."""
        if self.pool is not None:
            return {row: self.pool[int(self._places[row])] for row in rows}
        wanted = set(rows)
        return {row: text for found in self.rounds for row, text in self._written(found, wanted)}

    def _written(self, found: RoundData, wanted: set[int]) -> Iterator[tuple[int, Row]]:
        lines = Lines.open(self.dir.round(found.number) / "selected.jsonl")
        for i, row in enumerate(found.rows.tolist()):
            if row in wanted:
                messages = parse_messages(lines.record(i), lines.where(i))
                yield row, Row(found.ids[i], found.sources[i], messages, lines.line(i))


def _read_round(folder: Path) -> RoundData:
    told = [*read_sidecar(folder)]
    ids, sources = ([entry[name] for entry in told] for name in ("id", "source"))
    return RoundData(**vars(read_round(folder)), scored=read_scored(folder), ids=ids, sources=sources)


def _read(path: Path, read: Callable[[Path], T]) -> T | None:
    return read(path) if path.exists() else None
