"""The official files of a benchmark in a person's data folder, and what is read out of them, checked."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusterucb.errors import InputError

__all__ = ["Official", "list_field", "read_json", "read_text", "text_field"]


@dataclass(frozen=True)
class Official:
    """Where the files of `task` lie in a data folder: in one of `folders` within it, or right in it."""

    task: str
    folders: tuple[str, ...]
    expects: str
    """What must be there, in one line."""
    url: str
    """Where a person gets it."""

    def bases(self, data_dir: Path) -> Iterator[Path]:
        """The folders to look in, best first. Raises InputError if the data folder is none."""
        if not data_dir.is_dir():
            raise InputError(f"{data_dir}: no such folder; expected one that holds {self.expects}")
        yield from (path for name in self.folders if (path := data_dir / name).is_dir())
        yield data_dir

    def find(self, data_dir: Path, *names: str) -> Path | None:
        """The first of these files that is there, if any."""
        paths = (base / name for base in self.bases(data_dir) for name in names)
        return next((path for path in paths if path.is_file()), None)

    def file(self, data_dir: Path, *names: str) -> Path:
        """The first of these files that is there. Raises InputError if none is."""
        path = self.find(data_dir, *names)
        if path is None:
            raise self.missing(data_dir, names[0])
        return path

    def missing(self, data_dir: Path, what: str) -> InputError:
        """The error to raise where `what` is not in the folder."""
        looked = ", ".join(f"{name}/" for name in self.folders)
        return InputError(
            f"{data_dir}: no {what} for {self.task} (looked in {looked} and the folder itself); expected "
            f"{self.expects}. Get it from {self.url}"
        )


def read_json(path: Path) -> Any:
    """A whole JSON file, gzipped or not. Raises InputError if it cannot be read."""
    try:
        return json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}: broken JSON at column {error.colno}: {error.msg}. Fetch it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: JSON that cannot be read: {error}. Fetch it again") from error


def read_text(path: Path) -> str:
    """A whole text file, its line ends as newlines. Raises InputError if it cannot be read."""
    try:
        text = _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start + 1}); fetch it again"
        ) from error
    return text.replace("\r\n", "\n")


def text_field(record: Any, name: str, where: str) -> str:
    """`record[name]`, as it is. Raises InputError naming `where` if it is no text or blank."""
    value = _field(record, name, where)
    if isinstance(value, str) and value.strip():
        return value
    raise InputError(f"{where}: {name} is {value!r:.60}, expected some text. Fetch the official file again")


def list_field(record: Any, name: str, where: str) -> list[Any]:
    """`record[name]`. Raises InputError naming `where` if it is no list or empty."""
    value = _field(record, name, where)
    if isinstance(value, list) and value:
        return value
    raise InputError(
        f"{where}: {name} is {value!r:.60}, expected a list that is not empty. Fetch the official file again"
    )


def _field(record: Any, name: str, where: str) -> Any:
    if isinstance(record, Mapping) and name in record:
        return record[name]
    met = ", ".join(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
    raise InputError(f"{where}: no {name} in it (met: {met:.80}); is this the official file?")


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); fetch it again") from error
