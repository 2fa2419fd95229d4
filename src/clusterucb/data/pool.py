"""The pool: the rows to choose from, in one or several files, each row with a stable id.

`Pool.read` looks at every row once, so that whatever is wrong with one is said before a model loads.
After that only small arrays stay in memory, 28 bytes a row; rows are read from disk when asked for.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clusterucb.data.files import HUB, Lines, decode_object, is_hub, stem
from clusterucb.data.rows import Message, Row, digest8, parse_messages, shape_of, text_digest, unicode
from clusterucb.errors import InputError, StorageError


class Pool:
    """A sequence of `Row`. Make one with `Pool.read`."""

    def __init__(self, files: Iterable[Lines]) -> None:
        self._files: list[Lines] = []
        sources: dict[str, int] = {}
        codes, digests, sha = array("i"), array("Q"), hashlib.sha256()
        for lines in files:
            self._files.append(lines)
            sha.update(f"{len(lines)} {lines.name}\n".encode())
            for raw, source, messages in _checked(lines):
                sha.update(raw + b"\n")
                codes.append(sources.setdefault(source, len(sources)))
                digests.append(text_digest(messages))
        self._ends = np.cumsum([len(lines) for lines in self._files])
        self._digests = np.frombuffer(digests, np.uint64)
        self.sources: list[str] = list(sources)
        self.source_codes: npt.NDArray[np.int32] = np.frombuffer(codes, np.int32)
        self.fingerprint: str = sha.hexdigest()

    @classmethod
    def read(cls, paths: str | Path | Sequence[str | Path]) -> Pool:
        """Open and check the files or hub data sets (see `Lines.open`), in the order given.

        Raises InputError at the first row that cannot be used, a file given twice, a file that mixes
        shapes, and an `id` that occurs twice in one file.
        """
        sources = [paths] if isinstance(paths, (str, Path)) else list(paths)
        if not sources:
            raise InputError("no pool file given; expected at least one")
        return cls(map(Lines.open, sources, _unique_names(sources)))

    def __len__(self) -> int:
        return len(self.source_codes)

    def __getitem__(self, i: int) -> Row:
        lines, at = self._locate(i)
        raw, where = lines.line(at), lines.where(at)
        return Row(_id(lines, at), self.source(i), parse_messages(decode_object(raw, where), where), raw)

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))

    def id(self, i: int) -> str:
        """Name of row `i`, the same in every run: "file:line"."""
        lines, at = self._locate(i)
        return _id(lines, at)

    def source(self, i: int) -> str:
        """The row's `dataset` column, or its file's name without suffixes."""
        return self.sources[int(self.source_codes[i])]

    def file(self, i: int) -> int:
        """The number of the file that row `i` is in, from 0."""
        return int(np.searchsorted(self._ends, i, side="right"))

    def records(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Every row with all its columns, and how to name it in a message."""
        return chain.from_iterable(lines.records() for lines in self._files)

    def text_digests(self) -> npt.NDArray[np.uint64]:
        """One hash a row of its conversation's text (`rows.text_digest`), to find equal rows by."""
        return self._digests

    def write(self, rows: Iterable[int], path: Path) -> None:
        """Write the input lines of `rows` to `path`, byte for byte, each once, in pool order.

        Rows of a file that has no lines are written as the JSON lines they were spooled as. Writes to
        `path` itself: whoever publishes it renames it. Raises StorageError if it cannot be written.
        """
        try:
            with path.open("wb") as out:
                for i in sorted(set(rows)):
                    lines, at = self._locate(i)
                    out.write(lines.line(at) + b"\n")
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror or error})") from error

    def _locate(self, i: int) -> tuple[Lines, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of a pool of {len(self)}")
        file = self.file(i)
        lines = self._files[file]
        return lines, int(i - self._ends[file] + len(lines))


def _checked(lines: Lines) -> Iterator[tuple[bytes, str, tuple[Message, ...]]]:
    """Every row of one file: as it stands there, its source, its turns. Raises InputError."""
    shape = ""
    rows, hashes = array("q"), array("Q")  # those that have an id, as ids themselves may not fit in memory
    for i, raw in enumerate(lines):
        where = lines.where(i)
        record = decode_object(raw, where)
        met = shape_of(record, where)
        if met != (shape := shape or met):
            raise InputError(
                f"{where}: columns of shape {met}, but {lines.where(0)} has shape {shape}; "
                "expected one shape a file. Split the file"
            )
        yield raw, _source(record, lines, where), parse_messages(record, where)
        if record.get("id") is not None:
            rows.append(i)
            hashes.append(digest8(_key(record)))
    _refuse_twins(lines, rows, hashes)


def _source(record: dict[str, Any], lines: Lines, where: str) -> str:
    own = record.get("dataset")
    if not isinstance(own, str) or not own.strip():
        return stem(lines.name)
    return unicode(own, "column dataset", where)


def _refuse_twins(lines: Lines, rows: array[int], hashes: array[int]) -> None:
    """Raise InputError for the first row whose id an earlier one has."""
    order = np.argsort(np.frombuffer(hashes, np.uint64), kind="stable")
    ascending = np.frombuffer(hashes, np.uint64)[order]
    twins = np.flatnonzero(ascending[1:] == ascending[:-1])
    for later, earlier in sorted((rows[order[t + 1]], rows[order[t]]) for t in twins):
        record = lines.record(later)
        if _key(record) == _key(lines.record(earlier)):  # not just equal hashes
            raise InputError(
                f"{lines.where(later)}: id {repr(record['id'])[:80]} is that of "
                f"{lines.where(earlier)} too; expected each id once a file. Drop one or rename it"
            )


def _id(lines: Lines, at: int) -> str:
    return f"{lines.name}:{lines.number(at)}"


def _key(record: dict[str, Any]) -> bytes:
    return json.dumps(record["id"], sort_keys=True).encode()


def _unique_names(sources: Sequence[str | Path]) -> list[str]:
    """Base names, with as many parent folders in front as it takes to tell them apart."""
    identities = [str(s) if is_hub(s) else str(Path(s).resolve()) for s in sources]
    for i, identity in enumerate(identities):
        if identity in identities[:i]:
            raise InputError(f"{sources[i]}: given twice; expected each file once. Name it once")
    parts = [(str(s)[len(HUB) :],) if is_hub(s) else Path(s).absolute().parts for s in sources]
    depths = [1] * len(parts)
    while True:
        names = ["/".join(p[-depth:]) for p, depth in zip(parts, depths, strict=True)]
        clashes = [i for i, name in enumerate(names) if names.count(name) > 1]
        if not clashes:
            return names
        for i in clashes:
            depths[i] += 1
