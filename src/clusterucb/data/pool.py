"""The pool: the rows to choose from, in one or several files, each row with a stable id.

`Pool.read` looks at every row once, so that whatever is wrong with one is known before a model loads: such a
row is refused, with the reason, and is none of the pool's. After that only small arrays stay in memory, 28
bytes a row; rows are read from disk when asked for.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clusterucb.data.files import HUB, Lines, decode_object, is_hub, stem
from clusterucb.data.rows import Row, digest8, parse_messages, shape_of, text_digest, unicode
from clusterucb.errors import InputError, StorageError


class Refused(NamedTuple):
    """A row of a file that cannot be read."""

    id: str
    where: str
    """How a message names it: "pool.jsonl, line 12"."""
    reason: str


class Pool:
    """A sequence of `Row`, those that can be read; the others are `refused`. Make one with `Pool.read`."""

    def __init__(self, files: Iterable[Lines]) -> None:
        self._files: list[Lines] = []
        self.refused: list[Refused] = []
        sources: dict[str, int] = {}
        codes, digests, sha = array("i"), array("Q"), hashlib.sha256()
        dropped: list[int] = []
        for lines in files:
            self._files.append(lines)
            sha.update(f"{len(lines)} {lines.name}\n".encode())
            wrong: dict[int, str] = {}
            begin = len(codes)
            for source, digest in _checked(lines, sha, wrong):
                codes.append(sources.setdefault(source, len(sources)) if source else 0)
                digests.append(digest)
            dropped += [begin + i for i in wrong]
            self.refused += _drop(lines, wrong)
        if len(dropped) == len(codes) > 0:
            raise _none_of(self.refused)
        self._ends = np.cumsum([len(lines) for lines in self._files])
        self._digests = np.delete(np.frombuffer(digests, np.uint64), dropped)
        self.sources: list[str] = list(sources)
        self.source_codes: npt.NDArray[np.int32] = np.delete(np.frombuffer(codes, np.int32), dropped)
        self.fingerprint: str = sha.hexdigest()

    @classmethod
    def read(cls, paths: str | Path | Sequence[str | Path]) -> Pool:
        """Open and check the files or hub data sets (see `Lines.open`), in the order given.

        Refused is a row that cannot be parsed, has no conversation, or has the `id` of an earlier one of
        the file. Raises InputError for a file that cannot be read, has no row of a known shape, or is given
        twice, and where no row is left.
        """
        sources = [paths] if isinstance(paths, (str, Path)) else list(paths)
        if not sources:
            raise InputError("no pool file given; expected at least one")
        for source in map(str, sources):
            unicode(source, "the name", ascii(source))
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


def _checked(lines: Lines, sha: hashlib._Hash, wrong: dict[int, str]) -> Iterator[tuple[str, int]]:
    """Source and text digest of every row of one file; of one that cannot be read "" and 0.

    Why it cannot is put into `wrong`, by its place; a second row of an id is known at the end only.
    """
    # Places and hashes of rows that have an id, as ids themselves may not fit in memory.
    places, hashes = array("q"), array("Q")
    for i, raw in enumerate(lines):
        sha.update(raw + b"\n")
        where = lines.where(i)
        try:
            record = decode_object(raw, where)
            found = _source(record, lines, where), text_digest(parse_messages(record, where))
        except InputError as error:
            wrong[i], found = str(error).removeprefix(f"{where}: "), ("", 0)
        else:
            if record.get("id") is not None:
                places.append(i)
                hashes.append(digest8(_key(record)))
        yield found
    wrong.update(_twins(lines, places, hashes))


def _drop(lines: Lines, wrong: Mapping[int, str]) -> list[Refused]:
    """Take the rows that cannot be read out of `lines`. Raises InputError if none is of a known shape."""
    refused = [Refused(_id(lines, i), lines.where(i), wrong[i]) for i in sorted(wrong)]
    if len(refused) == len(lines) and not any(_is_known(lines, i) for i in range(len(lines))):
        raise _none_of(refused)
    if wrong:
        lines.drop(wrong)
    return refused


def _is_known(lines: Lines, i: int) -> bool:
    """Whether line `i` has columns of a known shape, whatever they hold."""
    try:
        return bool(shape_of(lines.record(i), lines.where(i)))
    except InputError:
        return False


def _none_of(refused: Sequence[Refused]) -> InputError:
    """The error of rows that are all there are."""
    others = f" (nor can any other of {len(refused)} rows be used)" if len(refused) > 1 else ""
    return InputError(f"{refused[0].where}: {refused[0].reason}{others}")


def _source(record: dict[str, Any], lines: Lines, where: str) -> str:
    own = record.get("dataset")
    if not isinstance(own, str) or not own.strip():
        return stem(lines.name)
    return unicode(own, "column dataset", where)


def _twins(lines: Lines, places: array[int], hashes: array[int]) -> Iterator[tuple[int, str]]:
    """The rows whose id an earlier one has, each with that as the reason."""
    order = np.argsort(np.frombuffer(hashes, np.uint64), kind="stable")
    ascending = np.frombuffer(hashes, np.uint64)[order]
    for twin in np.flatnonzero(ascending[1:] == ascending[:-1]):
        earlier, later = places[order[twin]], places[order[twin + 1]]
        record = lines.record(later)
        if _key(record) == _key(lines.record(earlier)):  # not just equal hashes
            said = f"id {repr(record['id'])[:80]} is that of {lines.where(earlier)} too"
            yield later, f"{said}; expected each id once a file. Drop one or rename it"


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
