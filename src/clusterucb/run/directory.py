"""A run directory: where each artifact lives, how it appears, and who may write.

An artifact is written under a `.part` name and renamed when it is complete, so what has its final name is
whole. One process at a time owns the directory. Knows paths, not contents.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from clusterucb.errors import BusyError, InputError, MismatchError, StorageError
from clusterucb.runtime.processes import ALONE, World

__all__ = [
    "RunDir",
    "check_made_with",
    "publish",
    "publish_folder",
    "read_json",
    "storage_errors",
    "write_json",
]


_FULL_BYTES = 1 << 20
_KEPT = "what was finished is kept: make room and run the same command again"


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


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what a disk can say into one line that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
            raise StorageError(f"{path}: {error.strerror}; {_KEPT}") from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            raise InputError(f"{path}: {error.strerror}; the run directory must be a folder") from error
        raise
    except (RuntimeError, SafetensorError) as error:  # how torch and safetensors report a failed write
        if "No space left" not in str(error) and not _is_full(path):
            raise
        raise StorageError(f"{path}: no space left on the disk; {_KEPT}") from error


def _is_full(path: Path) -> bool:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(existing).free < _FULL_BYTES


@contextmanager
def publish(path: Path) -> Iterator[Path]:
    """A temporary path for a file that becomes `path` when the block ends well."""
    part = path.with_name(path.name + ".part")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)


@contextmanager
def publish_folder(path: Path, *, resume: bool = False, world: World = ALONE) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well; kept for `resume`, else emptied.

    All processes of the `world` that is given enter the block and leave it together.
    """
    part = path.with_name(path.name + ".part")

    def begin() -> None:
        if part.exists() and not resume:
            shutil.rmtree(part)
        part.mkdir(parents=True, exist_ok=True)

    def end() -> None:
        for file in part.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        part.replace(path)

    with storage_errors(path):
        world.lead(begin)
        yield part
        world.gather(None)  # all have written what they had to
        world.lead(end)


def check_made_with(found: Mapping[str, object], expected: Mapping[str, object], what: str) -> None:
    """Raise MismatchError naming both values where an artifact was made with something else."""
    for key, value in expected.items():
        if found.get(key) != value:
            raise MismatchError(
                f"{what} was made with {key} {found.get(key)!r}, this run has {value!r}; "
                f"use another run directory, or delete {what} to make it again"
            )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Publish `content` as indented JSON."""
    with publish(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of ours."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
