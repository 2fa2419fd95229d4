"""The raw files of a data set, in a folder or on the hub, and their rows.

Every error in a row says how a row of this data set looks, as the usual cause is another data set's file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from clusterucb.data.files import HUB, Lines, decode_text, dump, is_hub, read_errors, unpacked
from clusterucb.data.rows import column_names
from clusterucb.errors import InputError, reason
from clusterucb.sources.source import RawRows, Source

TSV_COLUMNS = ("inputs", "answer", "rationale")
"""FLAN's tab-separated files have no header."""
_SHOWN = 10


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
        if isinstance(origin, Path) and origin.name.lower().removesuffix(".gz").endswith(".tsv"):
            return _open_table(origin, name or str(origin))
        return Lines.open(origin, name)


def _open_table(path: Path, name: str) -> Lines:
    with read_errors(name), unpacked(path) as lines:
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
