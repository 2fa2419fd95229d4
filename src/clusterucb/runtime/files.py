"""Files that appear whole: written under a `.part` name and renamed when complete; what disks can say."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from clusterucb.errors import InputError, MismatchError, StorageError
from clusterucb.runtime.processes import ALONE, World

_FULL_BYTES = 1 << 20
_KEPT = "what was finished is kept: make room and run the same command again"


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
