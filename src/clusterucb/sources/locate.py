"""Where the raw files of a data set are: in a folder, or in a repository of the hub."""

from __future__ import annotations

from pathlib import Path

from clusterucb.data.files import HUB
from clusterucb.errors import InputError
from clusterucb.sources.source import Source

__all__ = ["files_in", "hub_file"]

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
