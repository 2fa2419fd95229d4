"""One record of a data set, in any of four shapes, as a conversation.

Knows nothing of files: `where` is how a message names the row ("pool.jsonl, line 12").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from clusterucb.errors import InputError

SHAPES: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),  # list of {role, content[, given]} (open-instruct)
    "prompt/completion": ("prompt", "completion"),  # strings, or lists of {role, content} (trl)
    "instruction/output": ("instruction", "output"),  # strings, with an optional `input` (Alpaca)
    "conversations": ("conversations",),  # list of {from, value} (ShareGPT); the keys may be changed about
}
"""Shapes and the columns that a record must have for each; the first that fits is taken."""

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing"), "assistant"),
}
_TURN = "{role, content} or {from, value}"
_SYSTEM = ("system", "system_prompt")
_WEIGHTS = ("weight", "train", "loss_weight")
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_UNREAD = (*_MEDIA, "tools", "functions", "function_call", "chat_template_kwargs")
_UNREAD_OF_SHAPE = {"conversations": ("chosen", "rejected"), "instruction/output": ("context",)}
_UNREAD_OF_TURN = (
    *(*_MEDIA, "tool_calls", "function_call", "refusal", "train_detail"),
    *("reasoning_content", "reasoning", "thinking"),
)
"""Keys of trl, axolotl, LLaMA-Factory and OpenAI that change what is read or learnt, without a place here."""


@dataclass(frozen=True)
class Message:
    """One turn: `role` is system, user or assistant; `content` is its text, as the file has it.

    `given` is the beginning of an answer that the model is shown and does not learn, such as a
    benchmark's "The answer is:". An answer of which nothing is learnt, as it stands in a prompt or has a
    weight of 0, is not to `learn`.
    """

    role: str
    content: str
    given: str = ""
    learn: bool = True

    @property
    def learnt(self) -> bool:
        """Whether it is an answer to learn from."""
        return self.role == "assistant" and self.learn


@dataclass(frozen=True)
class Row:
    """One row of a pool or a target; `raw` is its input line without the newline."""

    id: str
    source: str
    messages: tuple[Message, ...]
    raw: bytes


def shape_of(record: Mapping[str, Any], where: str) -> str:
    """Name of the record's shape, a key of `SHAPES`.

    A column that is null counts as absent where another shape fits (parquet fills with nulls).
    Raises InputError for columns of no shape.
    """
    for filled in (True, False):
        for shape, columns in SHAPES.items():
            if all(record.get(column) is not None if filled else column in record for column in columns):
                return shape
    known = "; ".join(" + ".join(columns) for columns in SHAPES.values())
    raise InputError(
        f"{where}: unknown columns {column_names(record)}; expected one of: {known}. Rename the columns"
    )


def parse_messages(record: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """The record's turns, at least one of them an answer to learn, none of them empty.

    A column `system` (or `system_prompt`) is the first turn, Alpaca's `history` of questions and answers the
    next.

    Raises InputError for unknown columns, an unknown role, a content that is empty or no text,
    a list of messages that is none, a row with no assistant turn, and a key that changes the conversation
    and has no place in it, such as tools.
    """
    shape = shape_of(record, where)
    _refuse_unread(record, (*_UNREAD, *_UNREAD_OF_SHAPE.get(shape, ())), where)
    if record.get("kto_tag") is False or (shape == "prompt/completion" and record.get("label") is False):
        raise InputError(f"{where}: its label says that the answer is not wanted (KTO). Drop the row")
    messages = (*_before(record, where), *_read(record, shape, where))
    in_column = any(_filled(record, column) for column in _SYSTEM)
    if in_column and [message.role for message in messages].count("system") > 1:
        raise InputError(f"{where}: has a column system and a system turn, expected one. Take one out")
    if not any(message.learnt for message in messages):
        roles = ", ".join(message.role for message in messages) or "no messages"
        raise InputError(
            f"{where}: no assistant turn (met: {roles}); expected at least one to learn from. Drop the row"
        )
    return messages


def column_names(record: Mapping[str, Any]) -> str:
    """The first twelve names of the record's columns, for a message."""
    names = [_short(name) for name in record]
    return ", ".join([*names[:12], "..."] if len(names) > 12 else names) or "(none)"


def unexpected(what: str, value: Any, expected: str) -> InputError:
    """The error to raise of what is not as expected; `what` begins with where it is."""
    return InputError(f"{what} is {_short(value)}, expected {expected}")


def digest8(data: bytes) -> int:
    """The 64-bit blake2b hash of `data`, as an unsigned integer."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


def text_digest(messages: Iterable[Message]) -> int:
    """64-bit hash of roles and stripped contents: equal for the same conversation in any shape."""
    return digest8("\x1e".join(f"{m.role}\x1f{m.content.strip()}" for m in messages).encode())


def _filled(record: Mapping[str, Any], column: str) -> bool:
    """Whether a column says something, as NaN and the text of an empty list do not."""
    value = record.get(column)
    return value == value and bool(value.strip().strip("[]{}") if isinstance(value, str) else value)


def _refuse_unread(record: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    """Raise InputError for the first of `keys` that says something."""
    if found := next((key for key in keys if _filled(record, key)), None):
        raise InputError(
            f"{where}: {found} is {_short(record[found])}, which changes the conversation and is not read. "
            "Write what it says into the messages, or drop the key or the row"
        )


def _before(record: Mapping[str, Any], where: str) -> Iterator[Message]:
    """The turns that stand in columns of their own, before those of the shape."""
    for column in _SYSTEM:
        if _filled(record, column):
            yield Message("system", _text(record[column], f"column {column}", where))
    if not _filled(record, "history"):
        return
    for number, pair in enumerate(record["history"] if isinstance(record["history"], list) else [None], 1):
        what = f"pair {number} of column history"
        if not isinstance(pair, list) or len(pair) != 2:
            raise unexpected(f"{where}: {what}", pair, "[question, answer]")
        yield Message("user", _text(pair[0], what, where))
        yield Message("assistant", _text(pair[1], what, where))


def _read(record: Mapping[str, Any], shape: str, where: str) -> Iterator[Message]:
    if shape == "instruction/output":
        yield Message("user", _instruction(record, where))
        yield Message("assistant", _text(record["output"], "column output", where))
    elif shape == "prompt/completion":
        for column, role in (("prompt", "user"), ("completion", "assistant")):
            if isinstance(record[column], list):
                for turn in _turns(record, column, where):
                    shown = column == "prompt" and turn.role == "assistant"
                    yield replace(turn, learn=False) if shown else turn
            else:
                yield Message(role, _text(record[column], f"column {column}", where))
    else:
        yield from _turns(record, shape, where)


def _instruction(record: Mapping[str, Any], where: str) -> str:
    question, extra = _text(record["instruction"], "column instruction", where), record.get("input")
    if extra is None or (isinstance(extra, str) and not extra.strip()):
        return question
    return question + "\n\n" + _text(extra, "column input", where)


def _turns(record: Mapping[str, Any], column: str, where: str) -> Iterator[Message]:
    turns = record[column]
    if not isinstance(turns, list):
        raise unexpected(f"{where}: {column}", turns, f"a list of {_TURN}")
    for number, turn in enumerate(turns, 1):
        what = f"message {number} of {column}"
        if not isinstance(turn, dict):
            raise unexpected(f"{where}: {what}", turn, _TURN)
        _refuse_unread(turn, _UNREAD_OF_TURN, f"{where}: {what}")
        role_key, text_key = ("from", "value") if "from" in turn else ("role", "content")
        if role_key not in turn or text_key not in turn:
            raise unexpected(f"{where}: {what}", turn, _TURN)
        role = turn[role_key]
        if not isinstance(role, str) or role not in _ROLES:
            raise InputError(
                f"{where}: unknown {role_key} {_short(role)} in {what}; known: {', '.join(_ROLES)}. "
                "Rename it or drop the row"
            )
        content = _text(turn[text_key], f"{text_key} of {what} ({role})", where)
        given = _given(turn, _ROLES[role], content, f"{where}: given of {what}")
        yield Message(_ROLES[role], content, given, _weighs(turn, f"{where}: {what}"))


def _weighs(turn: Mapping[str, Any], where: str) -> bool:
    """Whether a turn is learnt: OpenAI's `weight`, axolotl's `train` or LLaMA-Factory's `loss_weight`."""
    for key in _WEIGHTS:
        if (value := turn.get(key)) is not None and value not in (0, 1):
            raise unexpected(f"{where}, {key}", value, "0 or 1")
    return all(turn.get(key) in (None, 1) for key in _WEIGHTS)


def _given(turn: Mapping[str, Any], role: str, content: str, where: str) -> str:
    given = turn.get("given")
    if given is None or given == "":
        return ""
    if role != "assistant":
        raise InputError(f"{where} ({role}): only an assistant's message can have one. Take it out")
    if not isinstance(given, str) or given[:1].isspace() or not content.startswith(given):
        raise unexpected(where, given, "the text that the content begins with. Take it out or mend it")
    if not content[len(given) :].strip():
        raise InputError(f"{where} is the whole content, expected something after it to learn. Shorten it")
    return given


def _text(value: Any, what: str, where: str) -> str:
    """A text, or a list of parts that are all texts, joined."""
    if isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in value
    ):
        texts = [part.get("text") for part in value]
        value = "".join(texts) if all(isinstance(text, str) for text in texts) else value
    if not isinstance(value, str):
        raise unexpected(f"{where}: {what}", value, "a text")
    if not value.strip():
        raise InputError(f"{where}: {what} is empty, expected some text. Fill it in or drop the row")
    return unicode(value, what, where)


def unicode(value: str, what: str, where: str) -> str:
    """The text, which files can hold; InputError for what has no UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: {what} has half a surrogate pair, or a byte that is not UTF-8, "
            f"{value[error.start]!a}, at character {error.start + 1}. Repair or drop the row"
        ) from error
    return value


def _short(value: Any) -> str:
    if value is None:
        return "null"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
