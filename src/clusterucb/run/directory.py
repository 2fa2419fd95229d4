"""A run directory: where each artifact lives, how it appears, and who may write.

An artifact is written under a `.part` name and renamed when it is complete, so what has its final name is
whole. One process at a time owns the directory. Knows paths, not contents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from clusterucb.errors import BusyError
from clusterucb.runtime.files import storage_errors


class RunDir:
    """Paths of a run's artifacts.

    config.yaml           the settings, replayable
    target/, holdout/     the rows of these, where they are a benchmark's
    contamination.json    pool rows that nearly repeat what training must not see
    initial/              the adapter before any training
    pool/                 the pool's tokens, and excluded.jsonl
    warmup/               the warmup checkpoint: adapter and moments; LESS's next are warmup-2/, ...
    features/             every row's feature at that checkpoint, of its gradient or hidden states; at LESS's
                          next, features-2/, ...
    clusters.safetensors  labels and centroids
    rounds/1, 2, ...      what each selection chose: selected.jsonl, selected.ids.jsonl, draws.jsonl
    periods/1.json, ...   loss on held-out rows after each training period but the last
    training/             the trainer's own saved states
    adapter/              the result
    logs/                 TensorBoard's files, where the trainer reports to it
    benchmarks/           answers to benchmarks, and results.json
    evaluation.json, summary.json, report.html
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.target = self.path / "target"
        self.holdout = self.path / "holdout"
        self.contamination = self.path / "contamination.json"
        self.initial = self.path / "initial"
        self.pool = self.path / "pool"
        self.warmup = self.checkpoint(1)
        self.features = self.features_at(1)
        self.clusters = self.path / "clusters.safetensors"
        self.training = self.path / "training"
        self.adapter = self.path / "adapter"
        self.benchmarks = self.path / "benchmarks"
        self.evaluation = self.path / "evaluation.json"
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"

    def checkpoint(self, number: int) -> Path:
        """The folder of warmup checkpoint `number`, from 1."""
        return self.path / ("warmup" if number == 1 else f"warmup-{number}")

    def features_at(self, number: int) -> Path:
        """The folder of the features at warmup checkpoint `number`, from 1."""
        return self.path / ("features" if number == 1 else f"features-{number}")

    def round(self, number: int) -> Path:
        """The folder of selection `number`, from 1."""
        return self.path / "rounds" / str(number)

    def period(self, number: int) -> Path:
        """The loss on held-out rows after training period `number`, from 1."""
        return self.path / "periods" / f"{number}.json"

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
