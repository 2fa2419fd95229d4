"""The pool: the rows to choose from, in one or several files, each row with a stable id.

`Pool.read` looks at every row once, so that whatever is wrong with one is said before a model loads.
After that only small arrays stay in memory, 28 bytes a row; rows are read from disk when asked for.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clusterucb.data.files import HUB, Lines, decode_object, is_hub, stem
from clusterucb.data.rows import Row, digest8, parse_messages, shape_of, text_digest
from clusterucb.errors import InputError, StorageError


class Pool:
    """A sequence of `Row`. Make one with `Pool.read`."""

    def __init__(self, files: list[Lines], scan: _Scan) -> None:
        self._files = files
        self._ends = np.cumsum([len(lines) for lines in files])
        self._digests = np.frombuffer(scan.digests, np.uint64)
        self.sources: list[str] = list(scan.sources)
        self.source_codes: npt.NDArray[np.int32] = np.frombuffer(scan.codes, np.int32)
        self.fingerprint: str = scan.sha.hexdigest()

    @classmethod
    def read(cls, paths: str | Path | Sequence[str | Path]) -> Pool:
        """Open and check the files or hub data sets (see `Lines.open`), in the order given.

        Raises InputError at the first row that cannot be used, a file given twice, a file that mixes
        shapes, and an `id` that occurs twice in one file.
        """
        sources = [paths] if isinstance(paths, (str, Path)) else list(paths)
        if not sources:
            raise InputError("no pool file given; expected at least one")
        files, scan = [], _Scan()
        for source, name in zip(sources, _unique_names(sources), strict=True):
            files.append(Lines.open(source, name))
            scan.add(files[-1])
        return cls(files, scan)

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

    def where(self, i: int) -> str:
        """How to name row `i` in a message: "file, line 12"."""
        lines, at = self._locate(i)
        return lines.where(at)

    def source(self, i: int) -> str:
        """The row's `dataset` column, or its file's name without suffixes."""
        return self.sources[int(self.source_codes[i])]

    def record(self, i: int) -> dict[str, Any]:
        """Row `i` with all its columns."""
        lines, at = self._locate(i)
        return lines.record(at)

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
        file = int(np.searchsorted(self._ends, i, side="right"))
        lines = self._files[file]
        return lines, int(i - self._ends[file] + len(lines))


class _Scan:
    """What one pass over all rows finds out."""

    def __init__(self) -> None:
        self.sha = hashlib.sha256()
        self.sources: dict[str, int] = {}
        self.codes = array("i")
        self.digests = array("Q")

    def add(self, lines: Lines) -> None:
        """Check every row of one file. Raises InputError."""
        self.sha.update(f"{len(lines)} {lines.name}\n".encode())
        shape = ""
        ids = (
            array("q"),
            array("Q"),
        )  # rows that have an id, and its hash: ids themselves may not fit in memory
        for i, raw in enumerate(lines):
            where = lines.where(i)
            record = decode_object(raw, where)
            met = shape_of(record, where)
            if met != (shape := shape or met):
                raise InputError(
                    f"{where}: columns of shape {met}, but {lines.where(0)} has shape {shape}; "
                    "expected one shape a file. Split the file"
                )
            self.digests.append(text_digest(parse_messages(record, where)))
            self.codes.append(self._code(record, lines.name))
            self.sha.update(raw + b"\n")
            if record.get("id") is not None:
                ids[0].append(i)
                ids[1].append(digest8(_key(record)))
        _refuse_twins(lines, *ids)

    def _code(self, record: dict[str, Any], name: str) -> int:
        own = record.get("dataset")
        source = own if isinstance(own, str) and own.strip() else stem(name)
        return self.sources.setdefault(source, len(self.sources))


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
