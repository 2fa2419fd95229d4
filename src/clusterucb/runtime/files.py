"""Artifacts: files and folders that appear whole. Written under a `.part` name, renamed when complete.

    made(path, make, read, made_with)     what is read of `path`, which is made first where it is not there

What was made with something else than is wanted now is refused by `check_made_with`. What a disk can say
becomes one line by `storage_errors`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from clusterucb.errors import InputError, MismatchError, StorageError
from clusterucb.runtime.processes import ALONE, World

T = TypeVar("T")

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


def made(
    path: Path,
    make: Callable[[Path], object],
    read: Callable[[Path], T],
    made_with: Mapping[str, object] | None = None,
    *,
    resume: bool = False,
    world: World = ALONE,
) -> T:
    """What `read` makes of `path`, an artifact that is made first where it is not there.

    Args:
        path: a file, if its name has a suffix, or a folder.
        make: writes it under the name that it is given, an empty folder's or a file's. All processes call it
            together; the one that leads, or for a folder all, write.
        read: of the finished artifact.
        made_with: what it depends on, as was written down in it: in a folder's manifest.json, or in a JSON
            file itself.
        resume: keep what an unfinished attempt has left in the folder, for `make` to go on with.
        world: the processes that make it.

    Raises:
        MismatchError: it is there, and was made with something else.
    """
    if not world.has(path):
        publishing = publish(path, world) if path.suffix else publish_folder(path, resume=resume, world=world)
        with publishing as part:
            make(part)
    if made_with is not None:
        check_made_with(told(path), made_with, str(path))
    return read(path)


def told(path: Path) -> dict[str, object]:
    """What an artifact says that it was made with: a JSON file, a safetensors file or a folder."""
    if path.suffix == ".safetensors":
        with safe_open(path, "numpy") as file:
            facts = file.metadata() or {}
        return json.loads(facts["made_with"]) if "made_with" in facts else told(path.parent)
    content = read_json(path if path.suffix else path / "manifest.json")
    return dict(content["made_with"])


@contextmanager
def publish(path: Path, world: World = ALONE) -> Iterator[Path]:
    """A temporary path for a file that becomes `path` when the block ends well.

    All processes of the `world` that is given enter the block; the one that leads writes.
    """
    part = path.with_name(path.name + ".part")
    with storage_errors(path):
        world.lead(lambda: path.parent.mkdir(parents=True, exist_ok=True))
        yield part
        world.lead(lambda: _appear(path, part, [part]))


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

    with storage_errors(path):
        world.lead(begin)
        yield part
        world.gather(None)  # all have written what they had to
        world.lead(lambda: _appear(path, part, filter(Path.is_file, part.rglob("*"))))


def _appear(path: Path, part: Path, files: Iterable[Path]) -> None:
    """Give what is whole its name, once its files are on the disk."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    part.replace(path)


def check_made_with(
    found: Mapping[str, object], expected: Mapping[str, object], what: str, remedy: str = ""
) -> None:
    """Raise MismatchError naming both values where an artifact was made with something else, and a remedy."""
    for key, value in expected.items():
        if found.get(key) != value:
            raise MismatchError(
                f"{what} was made with {key} {found.get(key)!r}, this run has {value!r}; "
                + (remedy or f"use another run directory, or delete {what} to make it again")
            )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Publish `content` as indented JSON."""
    with publish(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of ours."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def began(path: Path) -> datetime:
    """When what `path` stands in was begun: now, if the file is not there yet."""
    if not path.exists():
        write_json(path, {"began": datetime.now().isoformat()})
    return datetime.fromisoformat(read_json(path)["began"])


def write_lines(path: Path, objects: Iterable[Mapping[str, Any]], *, ascii: bool = False) -> None:
    """Write one JSON object a line, into a file that the caller publishes."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(content, ensure_ascii=ascii) + "\n" for content in objects)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in such a file of ours."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
