"""What a data set of the papers is: its raw files, in a folder or on the hub, and how its rows are converted.

Every error in a row says how a row of this data set looks, as the usual cause is another data set's file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from clusterucb.data.files import HUB, Lines, decode_text, dump, is_hub, read_errors, unpacked
from clusterucb.data.rows import Message, column_names, unexpected
from clusterucb.errors import InputError, reason

TSV_COLUMNS = ("inputs", "answer", "rationale")
"""FLAN's tab-separated files have no header."""
_SHOWN = 10

RawRows = Iterator[tuple[Mapping[str, Any], str]]
"""Raw rows, each with how to name it in a message ("train.jsonl, line 12")."""


@dataclass(frozen=True)
class Conversation:
    """One row to write: user and assistant in turn, the assistant last; its id is "NAME_key"."""

    key: str
    messages: tuple[Message, ...]


Item = Conversation | str
"""A row to write, or the reason why something well-formed is not: what it is counted under."""
Converter = Callable[[RawRows], Iterator[Item]]


@dataclass(frozen=True)
class Source:
    """One data set.

    Every name of a raw file is a glob pattern and stands for the same name with `.gz`, too.
    """

    name: str
    title: str
    licence: str
    url: str
    """The page that has the raw files."""
    hub: str
    """`hub:org/name[:config][:split]`, as `Lines.open` understands it."""
    layouts: tuple[tuple[str, ...], ...]
    """Sets of raw files, best first; a folder must have all files of one set."""
    columns: tuple[tuple[str, ...], ...]
    """The columns that a raw row must have, one tuple for each shape the data set comes in."""
    convert: Converter
    hub_files: tuple[str, ...] = ()
    """Raw files to read from the hub's repository; if none, `hub` is loaded as a table."""

    @property
    def files(self) -> tuple[str, ...]:
        """All official names of raw files."""
        return tuple(dict.fromkeys(name for layout in self.layouts for name in layout))

    @property
    def looks(self) -> str:
        """How a raw row looks, for messages: "question + answer"."""
        return ", or ".join(" + ".join(columns) for columns in self.columns)


def raw_text(record: Mapping[str, Any], column: str, where: str) -> str:
    """The text in a column; null counts as empty. Raises InputError if it is no text."""
    value = record[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise unexpected(f"{where}: column {column}", value, "a string. Repair the row")
    return value


def free_key(key: str, row: int, taken: set[str]) -> str:
    """`key`, or the first of key_row, key_row_row, ... that is not taken; from here on it is."""
    while key in taken:
        key = f"{key}_{row}"
    taken.add(key)
    return key


def open_raw(source: Source, origin: str | Path) -> list[Lines]:
    """The raw files of `source`, opened.

    `origin` is "hub", a table of the hub, a raw file, or a folder that `files_in` looks into.
    Raises InputError if they are not there, or as `Lines.open` does.
    """
    if origin == "hub" and source.hub_files:
        return [_open(source, _fetched(source, file), f"{source.hub}/{file}") for file in source.hub_files]
    if origin == "hub" or is_hub(origin):
        return [_open(source, source.hub if origin == "hub" else origin)]
    path = Path(origin)
    if not path.exists():
        raise InputError(
            f"{path}: no such file or folder; expected {' or '.join(source.files)} or a folder with it, "
            f"from {source.url}"
        )
    return [_open(source, file) for file in (files_in(source, path) if path.is_dir() else [path])]


def raw_rows(source: Source, files: list[Lines]) -> RawRows:
    """All rows of all files, each with its name, all of the shape that the first row has.

    Raises InputError at a row that cannot be read or lacks a column.
    """
    shapes = list(source.columns)
    with _with_looks(source):
        for record, where in chain.from_iterable(file.records() for file in files):
            shapes = [columns for columns in shapes if record.keys() >= set(columns)][:1]
            if not shapes:
                raise InputError(f"{where}: columns {column_names(record)}")
            yield record, where


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


def _open(source: Source, origin: str | Path, name: str | None = None) -> Lines:
    with _with_looks(source):
        if not isinstance(origin, Path) or not origin.name.lower().removesuffix(".gz").endswith(".tsv"):
            return Lines.open(origin, name)
        name = name or str(origin)
        with read_errors(name), unpacked(origin) as lines:
            rows = ((n, dump(_table_row(line, f"{name}, line {n}"))) for n, line in enumerate(lines, 1))
            return Lines.spooled(rows, name, "line")


def _table_row(line: bytes, where: str) -> dict[str, str]:
    values = decode_text(line, where).rstrip("\r\n").split("\t")
    if len(values) != len(TSV_COLUMNS):
        raise InputError(
            f"{where}: {len(values)} columns, expected {len(TSV_COLUMNS)} between tabs: "
            f"{', '.join(TSV_COLUMNS)}. Fetch the file again"
        )
    return dict(zip(TSV_COLUMNS, values, strict=True))


def _fetched(source: Source, file: str) -> Path:
    """A raw file of the hub's repository, fetched once into the hub's own cache.

    Plain files are not left to `load_dataset`: it takes all files of a repository for one table, and makes
    one type of every column of a JSON file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(source.hub.removeprefix(HUB), file, repo_type="dataset"))
    except (OSError, ValueError, RuntimeError, EntryNotFoundError) as error:
        raise InputError(
            f"{source.hub}: {file} cannot be fetched ({type(error).__name__}: {reason(error)[:200]}); "
            f"check that the hub can be reached, or fetch it by hand from {source.url}"
        ) from error


@contextmanager
def _with_looks(source: Source) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        looks = f"A row of {source.name} has {source.looks}: is this its file, whole and unchanged?"
        raise InputError(f"{error}. {looks}") from error


def _matches(room: Path, pattern: str) -> list[Path]:
    """Files of this name or of this name and `.gz`, in order; of both, the plain one."""
    paths = [*room.glob(f"{pattern}.gz"), *room.glob(pattern)]
    found = {path.name.removesuffix(".gz"): path for path in paths if path.is_file()}
    return [path for _, path in sorted(found.items())]


def _not_found(source: Source, folder: Path, rooms: list[Path]) -> str:
    wanted = ", or ".join(" and ".join(layout) for layout in source.layouts)
    there = sorted(f"{path.relative_to(folder)}" for room in rooms for path in room.glob("*"))
    shown = ", ".join(there[:_SHOWN]) + (f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else "")
    return (
        f"{folder}: no raw files of {source.name}; expected {wanted} (also as .gz), there or in "
        f"{source.name}/; found {shown or 'nothing'}. They come from {source.url}"
    )
