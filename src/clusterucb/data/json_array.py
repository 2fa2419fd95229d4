"""A JSON file that is one array of objects, read one object at a time, with the line of each.

Memory holds one object and one chunk, however long the array is.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

from clusterucb.errors import InputError

_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
_TAIL = 16  # a literal or an escape cut by the chunk's end fails at most this far before it


def read_array(stream: BinaryIO, name: str, chunk: int = _CHUNK) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (1-based line where it begins, object) for each object of the array.

    Raises InputError, naming the line, for bytes that are not UTF-8, broken JSON, an item that is no
    object, an array that does not end, and for anything after its end.
    """
    reader = _Reader(_decoded(stream, name, chunk), name)
    reader.expect("[")
    if reader.peek() == "]":
        reader.expect("]")
    else:
        while True:
            yield reader.item()
            if reader.peek() == "]":
                break
            reader.expect(",")
        reader.expect("]")
    if reader.peek():
        reader.fail(reader.at, "extra data after the array")


class _Reader:
    """A window on the text: `text` from `at` on is unread; `line` and `column` are those of `at`."""

    def __init__(self, chunks: Iterator[str], name: str) -> None:
        self.chunks, self.name = chunks, name
        self.text, self.at, self.line, self.column = "", 0, 1, 1
        self.decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no space, or "" at the end of the file."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self.go(match.end() if match else self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def expect(self, character: str) -> None:
        if self.peek() != character:
            self.fail(self.at, f"expected {character!r} of the array")
        self.go(self.at + 1)

    def item(self) -> tuple[int, dict[str, Any]]:
        self.peek()
        line = self.line
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.text) - _TAIL
                if cut and self.more():
                    continue
                # `more` may have moved the window, but only if it found more text.
                self.fail(error.pos, error.msg)
            except (ValueError, RecursionError) as error:
                self.fail(self.at, str(error))
            if not isinstance(value, dict):
                kind = type(value).__name__
                raise InputError(
                    f"{self.name}, line {line}: a JSON {kind} in the array, expected an object {{...}}"
                )
            self.go(end)
            return line, value

    def more(self) -> bool:
        """Drop what is read, and at least double what is not; False at the end of the file."""
        fresh: list[str] = []
        wanted = len(self.text) - self.at
        while sum(map(len, fresh)) <= wanted and (chunk := next(self.chunks, "")):
            fresh.append(chunk)
        if not fresh:
            return False
        self.text, self.at = self.text[self.at :] + "".join(fresh), 0
        return True

    def go(self, to: int) -> None:
        self.line, self.column, self.at = *self.position(to), to

    def position(self, at: int) -> tuple[int, int]:
        """1-based line and column of `at`, which is not before the window's own position."""
        newline = self.text.rfind("\n", self.at, at)
        column = self.column + at - self.at if newline < 0 else at - newline
        return self.line + self.text.count("\n", self.at, at), column

    def fail(self, at: int, reason: str) -> NoReturn:
        line, column = self.position(at)
        raise InputError(
            f"{self.name}, line {line}: broken JSON at column {column}: {reason}. Repair the file"
        )


def _decoded(stream: BinaryIO, name: str, size: int) -> Iterator[str]:
    """The stream as non-empty pieces of text."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()  # -sig: a byte order mark is no text
    line = 1
    ended = False
    while not ended:
        data = stream.read(size)
        ended = not data
        try:
            text = decoder.decode(data, ended)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].count(b"\n")
            byte = error.object[error.start]
            raise InputError(
                f"{name}, line {line}: not UTF-8 (byte {byte:#04x}); save the file as UTF-8"
            ) from error
        line += text.count("\n")
        if text:
            yield text
