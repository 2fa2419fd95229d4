"""Every source of rows as one thing: a seekable file of JSON lines with an index of where each begins.

A plain `.jsonl` file is read in place. All else (`.json`, `.parquet`, anything `.gz`, a hub data set)
is spooled once into an anonymous temporary file of JSON lines. So a row costs 16 bytes of memory
whatever it weighs, and any row can be had at once. Knows nothing of what the objects mean.
"""

from __future__ import annotations

import codecs
import errno
import gzip
import json
import tempfile
import weakref
import zlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from clusterucb.data.json_array import read_array
from clusterucb.errors import InputError, StorageError

HUB = "hub:"
SUFFIXES = (".jsonl", ".json", ".parquet")
_PARQUET_BATCH = 256  # rows decoded at a time
_NumberedLines = Iterator[tuple[int, bytes]]


class Lines:
    """The non-blank lines of one source, each a JSON object not yet parsed.

    `name` is how messages and ids call the source. Not for use from several threads at once: all
    reads share one file position. The file is closed with the object.
    """

    def __init__(self, name: str, file: BinaryIO, starts: array[int], numbers: array[int], unit: str) -> None:
        self.name = name
        self._file = file
        self._starts = np.frombuffer(starts, np.int64)
        self._numbers = np.frombuffer(numbers, np.int64)
        self._unit = unit
        weakref.finalize(self, file.close)

    @classmethod
    def open(cls, source: str | Path, name: str | None = None) -> Lines:
        """Open `.jsonl`, `.json` or `.parquet`, each also as `.gz`, or `hub:org/name[:config][:split]`.

        The split is train if not given; `hub:org/name::test` names a split and no config.
        Raises InputError if the source is missing, a directory, of an unknown kind, damaged or without
        rows, StorageError if the temporary folder is full. Lines are not parsed yet.
        """
        name = str(source) if name is None else name
        with _one_line_errors(name):
            lines = _open_hub(str(source), name) if _is_hub(source) else _open_file(Path(source), name)
        if not len(lines):
            raise InputError(f"{name}: empty, no row in it; expected at least one")
        return lines

    def __len__(self) -> int:
        return len(self._starts)

    def line(self, i: int) -> bytes:
        """Line `i` (0-based, blank lines left out), as the file has it, without its newline.

        A carriage return before the newline is kept; a byte order mark is the file's, not the line's.
        """
        self._file.seek(self._starts[i])
        return self._file.readline().removesuffix(b"\n")

    def number(self, i: int) -> int:
        """1-based number of line `i` in the person's file (of the row, where a file has no lines)."""
        return int(self._numbers[i])

    def where(self, i: int) -> str:
        """How to name line `i` in a message: "pool.jsonl, line 12"."""
        return f"{self.name}, {self._unit} {self.number(i)}"

    def record(self, i: int) -> dict[str, Any]:
        """Line `i` parsed. Raises InputError as `decode_object` does."""
        return decode_object(self.line(i), self.where(i))

    def __iter__(self) -> Iterator[bytes]:
        return (self.line(i) for i in range(len(self)))


def decode_object(raw: bytes, where: str) -> dict[str, Any]:
    """Parse one line. Raises InputError if it is not UTF-8, broken JSON, or no object."""
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not UTF-8 (byte {raw[error.start]:#04x} at {error.start + 1}); save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: broken JSON at column {error.colno}: {error.msg}. Repair the line"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: JSON that cannot be read: {error}. Repair the line") from error
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: a JSON {type(value).__name__}, expected an object {{...}}. "
            "Write one object a line, or name a file that holds one array .json"
        )
    return value


def stem(name: str) -> str:
    """The name without the suffixes that `Lines.open` knows: "cot.v2.jsonl.gz" -> "cot.v2"."""
    base = name[: -len(".gz")] if name.lower().endswith(".gz") else name
    for suffix in SUFFIXES:
        if base.lower().endswith(suffix):
            return base[: -len(suffix)]
    return name


def _is_hub(source: str | Path) -> bool:
    return isinstance(source, str) and source.startswith(HUB)


def _open_file(path: Path, name: str) -> Lines:
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise InputError(f"{path}: a directory, expected a file; name the files in it")
    packed = path.suffix.lower() == ".gz"
    kind = Path(path.stem).suffix.lower() if packed else path.suffix.lower()
    if kind not in SUFFIXES:
        met = "".join(path.suffixes[-2:]) or "none"
        raise InputError(f"{path}: unknown suffix ({met}); known: {', '.join(SUFFIXES)}, each also with .gz")
    if kind == ".jsonl" and not packed:
        return _indexed(path, name)
    with ExitStack() as stack:
        stream: BinaryIO = stack.enter_context(path.open("rb"))
        if packed:
            stream = cast(BinaryIO, stack.enter_context(gzip.open(stream)))
        if kind == ".parquet":
            return _spooled(_parquet(_seekable(stream, stack, packed), name), name, "row")
        if kind == ".json" and _first_byte(stream) == b"[":
            # Objects are numbered, not lines: a minified array is one line.
            rows = ((n, _dump(record)) for n, (_, record) in enumerate(read_array(stream, name), 1))
            return _spooled(rows, name, "row")
        return _spooled(((number, line) for _, number, line in _numbered(stream)), name, "line")


def _indexed(path: Path, name: str) -> Lines:
    starts, numbers = array("q"), array("q")
    file = path.open("rb")
    with _closed_on_error(file):
        for start, number, _ in _numbered(file):
            starts.append(start)
            numbers.append(number)
        return Lines(name, file, starts, numbers, "line")


def _spooled(lines: _NumberedLines, name: str, unit: str) -> Lines:
    starts, numbers = array("q"), array("q")
    file = _temporary()
    with _closed_on_error(file):
        at = 0
        for number, line in lines:
            starts.append(at)
            numbers.append(number)
            at += file.write(line.removesuffix(b"\n") + b"\n")
        file.flush()  # a full disk shows itself here, not at a later read
        return Lines(name, file, starts, numbers, unit)


def _numbered(stream: Iterable[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """(byte offset, 1-based number, line with its newline) of each line that is not blank."""
    at = 0
    for number, line in enumerate(stream, 1):
        mark = len(codecs.BOM_UTF8) if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
        text = line[mark:]
        if text and not text.isspace():
            yield at + mark, number, text
        at += len(line)


def _first_byte(stream: BinaryIO) -> bytes:
    """The first byte that is neither space nor byte order mark; the stream is back at its start."""
    first = b""
    while not first and (chunk := stream.read(4096)):  # an array may be one line of gigabytes
        first = chunk.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    stream.seek(0)
    return first


def _seekable(stream: BinaryIO, stack: ExitStack, packed: bool) -> BinaryIO:
    # A parquet file is read from its end, and going back in a gzip stream unpacks it all again.
    if not packed:
        return stream
    copy = stack.enter_context(_temporary())
    while chunk := stream.read(1 << 20):
        copy.write(chunk)
    copy.seek(0)
    return copy


def _parquet(file: BinaryIO, name: str) -> _NumberedLines:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_PARQUET_BATCH):
                for record in batch.to_pylist():
                    number += 1
                    yield number, _dump(record)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise InputError(
            f"{name}: a truncated or corrupt parquet file ({_first_line(error)}); fetch it again"
        ) from error


def _open_hub(source: str, name: str) -> Lines:
    path, *rest = source[len(HUB) :].split(":")
    if not path or len(rest) > 2:
        raise InputError(f"{source}: expected hub:org/name[:config][:split]")
    config, split = (*rest, "", "")[:2]
    from datasets import load_dataset

    try:
        records = load_dataset(path, config or None, split=split or "train")
        return _spooled(((n, _dump(record)) for n, record in enumerate(records, 1)), name, "row")
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise InputError(
            f"{source}: the hub data set cannot be loaded ({type(error).__name__}: {_first_line(error)}); "
            "check name, config and split, and that the hub can be reached"
        ) from error


def _dump(record: Any) -> bytes:
    # Half a surrogate pair has no UTF-8; its backslash escape is valid JSON and says the same.
    return json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")


def _temporary() -> BinaryIO:
    return cast(BinaryIO, tempfile.TemporaryFile())


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


@contextmanager
def _closed_on_error(file: BinaryIO) -> Iterator[None]:
    try:
        yield
    except BaseException:
        file.close()
        raise


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"{name}: a truncated or corrupt gzip file ({_first_line(error)}); fetch it again"
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageError(
                f"{name}: no room to unpack it in {tempfile.gettempdir()}; set TMPDIR to a larger folder"
            ) from error
        raise InputError(f"{name}: cannot be read ({_first_line(error)})") from error
