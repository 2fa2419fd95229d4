"""A run directory: where each artifact lives, and who may write.

One process at a time owns it. Knows paths, not contents. Some of a run's artifacts may lie in another folder,
where several runs share them; `elsewhere.json` then names it, and the paths here are those.
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


class RunDir:
    """Paths of a run's artifacts.

    config.yaml           the settings, replayable
    elsewhere.json        folders of other runs that hold some of what is listed here
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

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._elsewhere = _elsewhere(self.path)
        self.config = self.path / "config.yaml"
        self.target = self._in("inputs") / "target"
        self.holdout = self._in("inputs") / "holdout"
        self.contamination = self._in("inputs") / "contamination.json"
        self.began = self._in("pool") / "began.json"
        self.initial = self._in("pool") / "initial"
        self.pool = self._in("pool") / "pool"
        self.warmup = self.checkpoint(1)
        self.features = self.features_at(1)
        self.clusters = self._in("clusters") / "clusters.safetensors"
        self.training = self.path / "training"
        self.adapter = self.path / "adapter"
        self.benchmarks = self.path / "benchmarks"
        self.base_answers = self._in("base_answers") / "benchmarks"
        self.evaluation = self.path / "evaluation.json"
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"
        self.memory = self.path / "memory.json"

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
        before = self.features_at(number) / "directions.safetensors"
        return before if before.exists() else self._in("directions") / "directions" / f"{number}.safetensors"

    def round(self, number: int) -> Path:
        """The folder of selection `number`, from 1."""
        return (self._in("first_round") if number == 1 else self.path) / "rounds" / str(number)

    def period(self, number: int) -> Path:
        """The loss on held-out rows after training period `number`, from 1."""
        return self.path / "periods" / f"{number}.json"

    def share(self, elsewhere: Mapping[str, Path]) -> RunDir:
        """This directory from now on, with groups of artifacts in folders that other runs use, too.

        A group is what a path above is `_in`: inputs, pool, checkpoints, features, directions, clusters,
        first_round or base_answers.
        """
        relative = {name: os.path.relpath(folder, self.path) for name, folder in elsewhere.items()}
        write_json(self.path / ELSEWHERE, relative)
        return RunDir(self.path)

    def _in(self, group: str) -> Path:
        return self._elsewhere.get(group, self.path)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the directory for this process; the lock dies with the process.

        Raises:
            BusyError: another process holds it.
        """
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
    file = path / ELSEWHERE
    found = read_json(file) if file.exists() else {}
    return {group: Path(os.path.normpath(path / folder)) for group, folder in found.items()}
