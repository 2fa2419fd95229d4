"""What a data set of the papers is: where its raw files come from, how a row looks, how to convert it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clusterucb.data.rows import Message, unexpected

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
