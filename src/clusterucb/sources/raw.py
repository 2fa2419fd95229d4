"""A raw file as numbered rows: all that `Lines` opens, and FLAN's tab-separated files.

Every error says how a row of this data set looks, as the usual cause is another data set's file.

Where the raw files of a data set are: in a folder, or in a repository of the hub.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from clusterucb.data.files import HUB, Lines
from clusterucb.errors import InputError
from clusterucb.sources.source import RawRows, Source

TSV_COLUMNS = ("inputs", "answer", "rationale")


class RawFile(Protocol):
    """What is read of a raw file."""

    def __len__(self) -> int:
        """The number of its rows."""

    def where(self, i: int, /) -> str:
        """How to name row `i` in a message."""

    def records(self) -> Iterator[dict[str, Any]]:
        """Its rows from the first to the last."""


def open_raw(source: Source, origin: str | Path, name: str | None = None) -> RawFile:
    """Open one raw file or hub table of `source`; messages call it `name`.

    Raises InputError as `Lines.open` does.
    """
    plain = str(origin).lower().removesuffix(".gz")
    with _with_looks(source):
        if plain.endswith(".tsv") and isinstance(origin, Path):
            return _Tsv(origin, name or str(origin))
        return _Json(Lines.open(origin, name))


def raw_rows(source: Source, files: list[RawFile]) -> RawRows:
    """All rows of all files, each with its name, all of the shape that the first row has.

    Raises InputError at a row that cannot be read or lacks a column.
    """
    shape: tuple[str, ...] | None = None
    for file in files:
        for i, record in enumerate(_read(source, file)):
            shape = shape or next((s for s in source.columns if _has(record, s)), None)
            if shape is None or not _has(record, shape):
                raise InputError(f"{file.where(i)}: columns {_names(record)}. {_looks(source)}")
            yield record, file.where(i)


class _Json:
    """The rows that `Lines` finds."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def __len__(self) -> int:
        return len(self._lines)

    def where(self, i: int) -> str:
        return self._lines.where(i)

    def records(self) -> Iterator[dict[str, Any]]:
        return (self._lines.record(i) for i in range(len(self._lines)))


class _Tsv:
    """Lines of three columns without a header and without quoting."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._length = sum(1 for _ in self._lines())
        if not self._length:
            raise InputError(f"{name}: empty, no row in it; expected at least one")

    def __len__(self) -> int:
        return self._length

    def where(self, i: int) -> str:
        return f"{self._name}, line {i + 1}"

    def records(self) -> Iterator[dict[str, Any]]:
        for i, line in enumerate(self._lines()):
            yield self._record(line, self.where(i))

    def _record(self, line: bytes, where: str) -> dict[str, Any]:
        try:
            values = line.decode("utf-8").rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{where}: not UTF-8 (byte {line[error.start]:#04x} at {error.start + 1}); "
                "fetch the file again"
            ) from error
        if len(values) != len(TSV_COLUMNS):
            raise InputError(
                f"{where}: {len(values)} columns, expected {len(TSV_COLUMNS)} between tabs: "
                f"{', '.join(TSV_COLUMNS)}. Fetch the file again"
            )
        return dict(zip(TSV_COLUMNS, values, strict=True))

    def _lines(self) -> Iterator[bytes]:
        packed = self._path.suffix.lower() == ".gz"
        with (
            _read_errors(self._name),
            gzip.open(self._path) if packed else self._path.open("rb") as lines,
        ):
            yield from lines


def _read(source: Source, file: RawFile) -> Iterator[dict[str, Any]]:
    with _with_looks(source):
        yield from file.records()


def _has(record: dict[str, Any], columns: tuple[str, ...]) -> bool:
    return all(column in record for column in columns)


def _names(record: dict[str, Any], limit: int = 12) -> str:
    names = [f"{name!r:.40}" for name in record]
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "") if names else "(none)"


def _looks(source: Source) -> str:
    return f"A row of {source.name} has {source.looks}: is this its file, whole and unchanged?"


@contextmanager
def _with_looks(source: Source) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}. {_looks(source)}") from error


@contextmanager
def _read_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{name}: a truncated or corrupt gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror or error})") from error


_SHOWN = 10


def files_in(source: Source, folder: Path) -> list[Path]:
    """The raw files of `source` in folder/NAME or, failing that, in the folder itself.

    Of several sets of files the first complete one. Raises InputError if there is none, with what is there.
    """
    rooms = [folder / source.name, folder]
    for room in rooms:
        for layout in source.layouts:
            found = [_matches(room, pattern) for pattern in layout]
            if all(found):
                return [path for paths in found for path in paths]
    raise InputError(_not_found(source, folder, rooms))


def hub_file(source: Source, file: str) -> Path:
    """A raw file of the hub's repository, fetched once into the hub's own cache.

    Raises InputError if it cannot be fetched. Plain files are not left to `load_dataset`: it takes all
    files of a repository for one table, and makes one type of every column of a JSON file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    repository = source.hub.removeprefix(HUB)
    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset"))
    except (OSError, ValueError, RuntimeError, EntryNotFoundError) as error:
        raise InputError(
            f"{source.hub}: {file} cannot be fetched ({type(error).__name__}: {_first_line(error)}); "
            f"check that the hub can be reached, or fetch it by hand from {source.url}"
        ) from error


def _matches(room: Path, pattern: str) -> list[Path]:
    """Files of this name or of this name and `.gz`, in order; of both, the plain one."""
    plain = {path.name: path for path in room.glob(pattern) if path.is_file()}
    packed = {path.name.removesuffix(".gz"): path for path in room.glob(f"{pattern}.gz") if path.is_file()}
    return [path for _, path in sorted({**packed, **plain}.items())]


def _not_found(source: Source, folder: Path, rooms: list[Path]) -> str:
    wanted = ", or ".join(" and ".join(layout) for layout in source.layouts)
    there = sorted(f"{path.relative_to(folder)}" for room in rooms for path in _entries(room))
    shown = ", ".join(there[:_SHOWN]) + (f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else "")
    return (
        f"{folder}: no raw files of {source.name}; expected {wanted} (also as .gz), there or in "
        f"{source.name}/; found {shown or 'nothing'}. They come from {source.url}"
    )


def _entries(room: Path) -> list[Path]:
    return list(room.iterdir()) if room.is_dir() else []


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
