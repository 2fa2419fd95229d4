"""A run directory: where each artifact lives, and who may write.

One process at a time owns it. Knows paths, not contents. What has no target in it may lie in an index that
other runs begin at, too; `elsewhere.json` then names its folders, and the paths here are those.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from clusterucb.errors import BusyError
from clusterucb.runtime.files import read_json, storage_errors, write_json

ELSEWHERE = "elsewhere.json"
INDEX = ("pool", "checkpoints", "features", "clusters")
"""The groups of artifacts that have no target in them: an index."""


class RunDir:
    """Paths of a run's artifacts.

    config.yaml           the settings, replayable
    elsewhere.json        the index's folders, if the run has begun at one
    target/, holdout/     the rows of these, where they are a benchmark's
    contamination.json    pool rows that nearly repeat what training must not see
    began.json            when the run began, if the chat template writes the date
    initial/              the adapter before any training
    pool/                 the pool's tokens, and excluded.jsonl
    warmup/               the warmup checkpoint: adapter and moments; LESS's next are warmup-2/, ...
    features/             every row's feature at that checkpoint, of its gradient or hidden states; at LESS's
                          next, features-2/, ...
    directions/           the target's directions at these checkpoints
    clusters.safetensors  labels and centroids
    rounds/1, 2, ...      what each selection chose: selected.jsonl, selected.ids.jsonl, draws.jsonl
    periods/1.json, ...   loss on held-out rows after each training period but the last
    memory.json           how many tokens fitted into memory at once, where that was found out
    training/             the trainer's own saved states
    adapter/              the result
    logs/                 TensorBoard's files, where the trainer reports to it
    benchmarks/           answers to benchmarks, and results.json
    evaluation.json, summary.json, report.html
    """

    def __init__(self, path: str | Path, elsewhere: Mapping[str, Path] | None = None) -> None:
        self.path = Path(path)
        self._elsewhere = _elsewhere(self.path) if elsewhere is None else elsewhere
        self.config = self.path / "config.yaml"
        self.target = self._in("task") / "target"
        self.holdout = self._in("task") / "holdout"
        self.contamination = self._in("task") / "contamination.json"
        self.began = self._in("pool") / "began.json"
        self.initial = self._in("pool") / "initial"
        self.pool = self._in("pool") / "pool"
        self.warmup = self.checkpoint(1)
        self.features = self.features_at(1)
        self.own_clusters = self.path / "clusters.safetensors"
        self.training = self.path / "training"
        self.adapter = self.path / "adapter"
        self.benchmarks = self.path / "benchmarks"
        self.base_answers = self._in("task") / "benchmarks"
        self.evaluation = self.path / "evaluation.json"
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"
        self.memory = self.path / "memory.json"

    @property
    def clusters(self) -> Path:
        """The run's own where it has some, as it asked for another number than the index has."""
        return (
            self.own_clusters if self.own_clusters.exists() else self._in("clusters") / "clusters.safetensors"
        )

    def checkpoint(self, number: int) -> Path:
        """The folder of warmup checkpoint `number`, from 1."""
        return self._in("checkpoints") / numbered("warmup", number)

    def features_at(self, number: int) -> Path:
        """The folder of the features at warmup checkpoint `number`, from 1."""
        return self._in("features") / numbered("features", number)

    def directions_at(self, number: int) -> Path:
        """The target's directions at warmup checkpoint `number`, from 1.

        Runs of earlier versions have them beside the features.
        """
        before = self.path / numbered("features", number) / "directions.safetensors"
        return before if before.exists() else self.path / "directions" / f"{number}.safetensors"

    def round(self, number: int) -> Path:
        """The folder of selection `number`, from 1."""
        return (self._in("first_round") if number == 1 else self.path) / "rounds" / str(number)

    def period(self, number: int) -> Path:
        """The loss on held-out rows after training period `number`, from 1."""
        return self.path / "periods" / f"{number}.json"

    def holds(self, artifact: Path) -> bool:
        """Whether it lies in the run's own folder, and not in an index or in what others use."""
        return self.path in artifact.parents

    def remedy(self, artifact: Path) -> str:
        """What to do where it does not fit: nothing is deleted in an index that is not the run's own."""
        return "" if self.holds(artifact) else "name another --index, or none"

    @property
    def index(self) -> dict[str, Path]:
        """The folder of each group that has no target in it."""
        return {group: self._in(group) for group in INDEX}

    def over(self, elsewhere: Mapping[str, Path]) -> RunDir:
        """This run, with groups of artifacts in folders that others use, too.

        A group is what a path above is `_in`: one of `INDEX`; in a comparison also task and first_round.
        """
        return RunDir(self.path, {**self._elsewhere, **elsewhere})

    def keep_elsewhere(self) -> None:
        """Write down where these are, so that they are found when all has moved together."""
        relative = {name: os.path.relpath(folder, self.path) for name, folder in self._elsewhere.items()}
        if self._elsewhere and relative != _written(self.path):
            write_json(self.path / ELSEWHERE, relative)

    def _in(self, group: str) -> Path:
        return self._elsewhere.get(group, self.path)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the directory for this process, with which the lock dies. Raises BusyError if another does."""
        owner = self.path / ".owner"
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            with storage_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                lock.acquire()
        except Timeout:
            pid = owner.read_text() if owner.exists() else "?"
            raise BusyError(
                f"{self.path}: in use by process {pid}; wait for it, or end it and run this again"
            ) from None
        try:
            with storage_errors(self.path):
                owner.write_text(str(os.getpid()))
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()


def numbered(name: str, number: int, between: str = "-") -> str:
    """`name` of the first, `name-2` of the second, and so on."""
    return name if number == 1 else f"{name}{between}{number}"


def _elsewhere(path: Path) -> dict[str, Path]:
    """The folder of each group that is not in the run directory itself."""
    return {group: Path(os.path.normpath(path / folder)) for group, folder in _written(path).items()}


def _written(path: Path) -> dict[str, str]:
    file = path / ELSEWHERE
    return read_json(file) if file.exists() else {}
