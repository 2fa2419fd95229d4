"""One data set from its raw files to `NAME.jsonl`, and what became of its rows to `NAME.json`.

The same input gives the same bytes. Neither file has its final name before it is complete.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from clusterucb.data.files import is_hub
from clusterucb.data.rows import digest8
from clusterucb.errors import ConfigError, InputError
from clusterucb.runtime.files import publish, write_json
from clusterucb.runtime.screen import Advance, Screen
from clusterucb.sources.catalogue import SOURCES
from clusterucb.sources.source import Conversation, Item, RawRows, Source, open_raw, raw_rows

Track = Callable[[str, int, str], AbstractContextManager[Advance]]
"""How progress is shown: `Screen.track`."""


@dataclass(frozen=True)
class Report:
    """What became of a data set."""

    name: str
    read: int
    """Raw rows."""
    written: int
    """Conversations; a raw row may hold several of them."""
    dropped: dict[str, int]
    """What was left out, by reason: rows, or turns and messages where the reason speaks of such."""
    files: tuple[str, ...]
    """The raw files read, without their folder."""
    sha256: str
    """Of the written file, in hex."""


def prepare(
    name: str,
    origin: str | Path,
    out: str | Path,
    progress: Track | None = None,
    *,
    rows: int | None = None,
    seed: int = 0,
) -> Report:
    """Convert the data set `name` into `out/NAME.jsonl`, with the report as `out/NAME.json`.

    Args:
        name: a key of `SOURCES`.
        origin: "hub", a raw file, a folder with the official files, there or in a folder NAME of it, or
            another table of the hub as `hub:org/name[:config][:split]`.
        out: a folder, made if need be; what it has of this data set is written anew.
        progress: `Screen.track` of a screen; None shows nothing.
        rows: at most so many conversations, drawn by `seed`; they are held in memory meanwhile.

    Raises ConfigError for an unknown name, InputError for raw files that are not there, damaged, another
    data set's or without a usable row, StorageError for a full disk.
    """
    source, out = source_named(name), Path(out)
    if Path(origin).resolve() == (out / f"{name}.jsonl").resolve():
        raise InputError(f"{origin}: is the file to be written, too. Name another folder to write to")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: not a folder. Name a folder to write to")
    files = open_raw(source, origin)
    names = tuple(file.name if is_hub(file.name) else Path(file.name).name for file in files)
    total, dropped = sum(map(len, files)), Counter[str]()
    track = progress or Screen(quiet=True).track
    with publish(out / f"{name}.jsonl") as part, track(f"prepare {name}", total, "rows") as advance:
        items = source.convert(_counted(raw_rows(source, files), advance))
        lines = _lines(name, items, dropped)
        if rows is not None:
            lines = _drawn(lines, rows, seed, dropped)
        try:
            written, sha256 = _write(lines, part)
            if not written:
                reasons = "; ".join(f"{reason}: {count}" for reason, count in sorted(dropped.items()))
                raise InputError(f"{', '.join(names)}: no row of {name} to learn from; {reasons}")
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        (out / f"{name}.json").unlink(missing_ok=True)  # no report of other rows beside the new ones
    report = Report(name, total, written, dict(sorted(dropped.items())), names, sha256)
    facts = {"title": source.title, "licence": source.licence, "url": source.url}
    write_json(out / f"{name}.json", {**facts, **asdict(report)})
    return report


def source_named(name: str) -> Source:
    """The data set of this name. Raises ConfigError if there is none."""
    if name not in SOURCES:
        raise ConfigError(f"unknown data set {name!r}; known: {', '.join(SOURCES)}")
    return SOURCES[name]


def _counted(rows: RawRows, advance: Advance) -> RawRows:
    for row in rows:
        yield row
        advance(1)


def _lines(name: str, items: Iterable[Item], dropped: Counter[str]) -> Iterator[bytes]:
    """The conversations as lines to write; what is dropped is counted."""
    for item in items:
        line = item if isinstance(item, str) else _line(name, item)
        if isinstance(line, str):
            dropped[line] += 1
        else:
            yield line


def _drawn(lines: Iterable[bytes], rows: int, seed: int, dropped: Counter[str]) -> Iterator[bytes]:
    """The `rows` lines of smallest hash, in their order: a uniform draw in one pass."""
    best: list[tuple[int, int, bytes]] = []
    for number, line in enumerate(lines):
        drawn = (-digest8(f"{seed}\n".encode() + line), number, line)
        if len(best) < rows:
            heapq.heappush(best, drawn)
        else:
            heapq.heappushpop(best, drawn)
            dropped["not drawn"] += 1
    return (line for _, line in sorted((number, line) for _, number, line in best))


def _write(lines: Iterable[bytes], part: Path) -> tuple[int, str]:
    written, sha = 0, hashlib.sha256()
    with part.open("wb") as file:
        for line in lines:
            file.write(line)
            sha.update(line)
            written += 1
    return written, sha.hexdigest()


def _line(name: str, conversation: Conversation) -> bytes | str:
    row = {
        "dataset": name,
        "id": f"{name}_{conversation.key}",
        "messages": [{"role": m.role, "content": m.content} for m in conversation.messages],
    }
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair, which no tokenizer takes
        return "broken Unicode"
