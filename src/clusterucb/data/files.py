"""Every source of rows as one thing: a seekable file of JSON lines with an index of where each begins.

Plain lines, `.jsonl` or `.json`, are read in place. All else (an array, `.parquet`, anything `.gz`, a hub
data set) is spooled once into an anonymous temporary file of JSON lines. So a row costs 16 bytes of memory
whatever it weighs, and any row can be had at once. Knows nothing of what the objects mean.
"""

from __future__ import annotations

import codecs
import errno
import gzip
import json
import re
import shutil
import tempfile
import weakref
import zlib
from array import array
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, cast

from clusterucb.errors import InputError, StorageError, reason

HUB = "hub:"
SUFFIXES = (".jsonl", ".json", ".parquet")
_ENDING = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))})(\.gz)?\Z", re.IGNORECASE)
_PARQUET_BATCH = 256  # rows decoded at a time
_SPACE = re.compile(r"[ \t\r\n]*")
_TAIL = 16  # a literal or an escape cut by the chunk's end fails at most this far before it


class Lines:
    """The non-blank lines of one source, each a JSON object not yet parsed.

    `name` is how messages and ids call the source. Not for use from several threads at once: all
    reads share one file position. The file is closed with the object.
    """

    def __init__(self, name: str, file: BinaryIO, unit: str, places: Iterable[tuple[int, int]]) -> None:
        self.name, self._file, self._unit = name, file, unit
        self._starts, self._numbers = array("q"), array("q")
        weakref.finalize(self, file.close)
        for start, number in places:
            self._starts.append(start)
            self._numbers.append(number)
        if not len(self):
            raise InputError(f"{name}: empty, no row in it; expected at least one")

    @classmethod
    def open(cls, source: str | Path, name: str | None = None) -> Lines:
        """Open `.jsonl`, `.json` or `.parquet`, each also as `.gz`, or `hub:org/name[:config][:split]`.

        The split is train if not given; `hub:org/name::test` names a split and no config.
        Raises InputError if the source is missing, a directory, of an unknown kind, damaged or without
        rows, StorageError if the temporary folder is full. Lines are not parsed yet.
        """
        name = name or str(source)
        with read_errors(name):
            return _open_hub(str(source), name) if is_hub(source) else _open_file(Path(source), name)

    @classmethod
    def spooled(cls, rows: Iterable[tuple[int, bytes]], name: str, unit: str) -> Lines:
        """Copy (number, line) pairs into a temporary file; `unit` is what the numbers count.

        Raises InputError if there are none, OSError if there is no room.
        """
        file = _temporary()
        return cls(name, file, unit, _written(rows, file))

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[bytes]:
        return (self.line(i) for i in range(len(self)))

    def line(self, i: int) -> bytes:
        """Line `i` (0-based, blank lines left out), as the file has it, without its newline.

        A carriage return before the newline is kept; a byte order mark is the file's, not the line's.
        """
        self._file.seek(self._starts[i])
        return self._file.readline().removesuffix(b"\n")

    def number(self, i: int) -> int:
        """1-based number of line `i` in the person's file (of the row, where a file has no lines)."""
        return self._numbers[i]

    def where(self, i: int) -> str:
        """How to name line `i` in a message: "pool.jsonl, line 12"."""
        return f"{self.name}, {self._unit} {self.number(i)}"

    def record(self, i: int) -> dict[str, Any]:
        """Line `i` parsed. Raises InputError as `decode_object` does."""
        return decode_object(self.line(i), self.where(i))

    def drop(self, places: Container[int]) -> None:
        """Pass over the lines at these places from now on, as over blank ones."""
        kept = [i for i in range(len(self)) if i not in places]
        self._starts, self._numbers = (
            array("q", map(old.__getitem__, kept)) for old in (self._starts, self._numbers)
        )

    def records(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Every line parsed, with how to name it. Raises InputError as `decode_object` does."""
        return ((self.record(i), self.where(i)) for i in range(len(self)))


def decode_object(raw: bytes, where: str) -> dict[str, Any]:
    """Parse one line. Raises InputError if it is not UTF-8, broken JSON, or no object."""
    advice = "Write one whole object a line"
    value = decode(raw, where, advice)
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON {type(value).__name__}, expected an object {{...}}. {advice}")
    return value


def decode(raw: bytes, where: str, advice: str = "Fetch it again") -> Any:
    """Parse JSON. Raises InputError naming `where`, ending in `advice`, if it is not UTF-8 or broken."""
    text = decode_text(raw, where)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        kind = "broken" if error.pos < len(text.rstrip()) else "unfinished"
        kind = "more than one" if error.msg == "Extra data" else kind
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise InputError(
            f"{where}: {kind} JSON at {line}column {error.colno}: {error.msg}. {advice}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: JSON that cannot be read: {error}. {advice}") from error


def decode_text(raw: bytes, where: str) -> str:
    """The text, without a byte order mark. Raises InputError naming `where` if it is not UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte {raw[error.start]:#04x} at {error.start + 1}"
        raise InputError(f"{where}: not UTF-8 ({byte}); save the file as UTF-8") from error


def dump(record: Any) -> bytes:
    """A record as one line of JSON, without a newline."""
    # Half a surrogate pair has no UTF-8; its backslash escape is valid JSON and says the same.
    return json.dumps(record, ensure_ascii=False, default=_plain).encode("utf-8", "backslashreplace")


def _plain(value: Any) -> Any:
    """What JSON has no type for: bytes are text in UTF-8, times are written as ISO has them.

    A byte that is not UTF-8 becomes half a surrogate pair, which no text that is read may have.
    """
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if isinstance(value, datetime):
        return value.isoformat(" ")
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"a value of type {type(value).__name__}")


def unpacked(path: Path) -> BinaryIO:
    """The file, open to read its bytes; what `.gz` has packed is unpacked."""
    return cast(BinaryIO, gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb"))


@contextmanager
def read_errors(name: str) -> Iterator[None]:
    """Turn what a disk or a gzip file can say while it is read into one line that names the file."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"{name}: a truncated or corrupt gzip file ({reason(error):.200}); fetch it again"
        ) from error
    except OSError as error:
        if _is_full(error):
            raise StorageError(
                f"{name}: no room to unpack it in {tempfile.gettempdir()}; set TMPDIR to a larger folder"
            ) from error
        raise InputError(f"{name}: cannot be read ({error.strerror or reason(error):.200})") from error


def is_hub(source: str | Path) -> bool:
    """Whether this names a data set of the hub, not a file."""
    return isinstance(source, str) and source.startswith(HUB)


def stem(name: str) -> str:
    """The name without the suffixes that `Lines.open` knows: "cot.v2.jsonl.gz" -> "cot.v2"."""
    return _ENDING.sub("", name)


def _open_file(path: Path, name: str) -> Lines:
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise InputError(f"{path}: a directory, expected a file; name the files in it")
    ending = _ENDING.search(path.name)
    if not ending:
        met = "".join(path.suffixes[-2:]) or "none"
        raise InputError(f"{path}: unknown suffix ({met}); known: {', '.join(SUFFIXES)}, each also with .gz")
    kind, packed = ending[1].lower(), bool(ending[2])
    with unpacked(path) as stream:
        if kind == ".parquet":
            return Lines.spooled(_parquet(stream, packed, name), name, "row")
        if kind == ".json" and _first_byte(stream) == b"[":
            # Objects are numbered, not lines: a minified array is one line.
            return Lines.spooled(_dumped(_Array(stream, name), name), name, "row")
        _refuse_another_shape(stream, name)
        if packed:
            return Lines.spooled(((number, line) for _, number, line in _numbered(stream)), name, "line")
    file = path.open("rb")
    return Lines(name, file, "line", ((start, number) for start, number, _ in _numbered(file)))


def _numbered(stream: Iterable[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """(byte offset, 1-based number, line with its newline) of each line that is not blank."""
    at = 0
    for number, line in enumerate(stream, 1):
        mark = len(codecs.BOM_UTF8) if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
        text = line[mark:]
        if text and not text.isspace():
            yield at + mark, number, text
        at += len(line)


def _written(rows: Iterable[tuple[int, bytes]], file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Write the lines, and say where each begins, with its number."""
    at = 0
    for number, line in rows:
        yield at, number
        at += file.write(line.removesuffix(b"\n") + b"\n")
    file.flush()  # a full disk shows itself here, not at a later read


def _dumped(records: Iterable[Any], name: str) -> Iterator[tuple[int, bytes]]:
    for number, record in enumerate(records, 1):
        try:
            yield number, dump(record)
        except TypeError as error:
            raise InputError(
                f"{name}, row {number}: has {error}, expected text, numbers and lists of these; "
                "drop the column"
            ) from None


def _refuse_another_shape(stream: BinaryIO, name: str) -> None:
    """Raise InputError for JSON that is right, but not one object a line; else go back to the start."""
    lines = _numbered(stream)
    (_, _, first), alone = next(lines, (0, 0, b"")), next(lines, None) is None
    is_array, over_lines = first.lstrip().startswith(b"["), False
    stream.seek(0)
    if not _begins_whole(first):
        with suppress(InputError):
            _Array(stream, name).first()
            over_lines = True
    stream.seek(0)
    if is_array and (over_lines or alone):
        raise InputError(f"{name}: one JSON array, expected one object a line; name the file .json")
    if over_lines:
        raise InputError(
            f"{name}: JSON objects over several lines, expected one whole object a line, as `jq -c .` writes"
        )


def _begins_whole(line: bytes) -> bool:
    """Whether a line begins with a whole JSON value."""
    try:
        json.JSONDecoder().raw_decode(line.decode().lstrip())
    except (ValueError, RecursionError):
        return False
    return True


def _first_byte(stream: BinaryIO) -> bytes:
    """The first byte that is neither space nor byte order mark; the stream is back at its start."""
    first = b""
    while not first and (chunk := stream.read(4096)):  # an array may be one line of gigabytes
        first = chunk.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    stream.seek(0)
    return first


class _Array:
    """A file that is one JSON array, an item at a time: memory holds one item and one chunk.

    Not by ijson: it refuses NaN, which Python writes, and its fast backends turn half a surrogate pair into
    a question mark.
    """

    def __init__(self, stream: BinaryIO, name: str, chunk: int = 1 << 16) -> None:
        self._stream, self._name, self._chunk = stream, name, chunk
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        # The text from `_at` on is unread, in the file's `_row`; it begins in the file's `_line`.
        self._text, self._at, self._line, self._row = "", 0, 1, 1

    def __iter__(self) -> Iterator[Any]:
        """Raises InputError, naming line and row, for what is not UTF-8 or broken."""
        self._pass("[")
        if self._next() != "]":
            yield self._item()
        while self._next() != "]":
            self._pass(",")
            yield self._item()
        self._pass("]")
        if self._next():
            raise self._broken("extra data after the array", self._at)

    def first(self) -> Any:
        """The array's first item, or what the file begins with instead of an array."""
        if self._next() == "[":
            self._pass("[")
        return self._item()

    def _next(self) -> str:
        """The next character that is no space, "" at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _pass(self, character: str) -> None:
        if self._next() != character:
            raise self._broken(f"expected {character!r} of the array", self._at)
        self._at += 1

    def _item(self) -> Any:
        """The next value; more is read until all of it is there."""
        self._next()
        while True:
            try:
                value, self._at = self._json.raw_decode(self._text, self._at)
                self._row += 1
                return value
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _TAIL
                if not (cut and self._more()):
                    raise self._broken(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self._broken(str(error), self._at) from error

    def _more(self) -> bool:
        """Drop what is read, and at least double what is not; False at the end of the file."""
        rest = self._text[self._at :]
        self._line += self._text.count("\n", 0, self._at)
        data = self._stream.read(max(self._chunk, len(rest)))
        try:
            self._text, self._at = rest + self._utf8.decode(data, not data), 0
        except UnicodeDecodeError as error:
            line = self._line + rest.count("\n") + error.object[: error.start].count(b"\n")
            byte = f"byte {error.object[error.start]:#04x}"
            raise InputError(
                f"{self._name}, line {line}: not UTF-8 ({byte}); save the file as UTF-8"
            ) from error
        return bool(data)

    def _broken(self, why: str, at: int) -> InputError:
        line = self._line + self._text.count("\n", 0, at)
        return InputError(f"{self._name}, line {line}, row {self._row}: broken JSON: {why}. Repair the file")


def _parquet(stream: BinaryIO, packed: bool, name: str) -> Iterator[tuple[int, bytes]]:
    import pyarrow
    import pyarrow.parquet

    with _temporary() if packed else stream as file:
        if packed:  # it is read from its end, and going back in a gzip stream unpacks all of it again
            shutil.copyfileobj(stream, file)
        try:
            with pyarrow.parquet.ParquetFile(file) as table:
                batches = table.iter_batches(batch_size=_PARQUET_BATCH)
                yield from _dumped((record for batch in batches for record in batch.to_pylist()), name)
        except UnicodeDecodeError as error:
            raise InputError(f"{name}: a text column is not UTF-8 ({error}); save it as UTF-8") from None
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(
                f"{name}: a truncated or corrupt parquet file ({reason(error):.200}); fetch it again"
            ) from error


def _open_hub(source: str, name: str) -> Lines:
    path, *rest = source[len(HUB) :].split(":")
    if not path or len(rest) > 2:
        raise InputError(f"{source}: expected hub:org/name[:config][:split]")
    config, split = (*rest, "", "")[:2]
    from datasets import load_dataset

    try:
        return Lines.spooled(
            _dumped(load_dataset(path, config or None, split=split or "train"), name), name, "row"
        )
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        if _is_full(error):
            raise
        raise InputError(
            f"{source}: the hub data set cannot be loaded ({type(error).__name__}: {reason(error):.200}); "
            "check name, config and split, and that the hub can be reached"
        ) from error


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.ENOSPC


def _temporary() -> BinaryIO:
    return cast(BinaryIO, tempfile.TemporaryFile())
